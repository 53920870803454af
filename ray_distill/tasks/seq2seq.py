"""Sequence to sequence (summaries, translations): of a source, at each token of its target a distribution over it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.errors import ModelError
from ray_distill.snapshots.pairs import Pair, pair_text, read_pair
from ray_distill.tasks.base import Batch, Corruption, Encoded, Processor, Ragged, Rejected
from ray_distill.tasks.classification import Unusable, encoded, pad_sequences, real_tokens, sift
from ray_distill.tasks.corruptions import Change
from ray_distill.tasks.text_classification import read_text
from ray_distill.tasks.text_corruptions import TEXT_CHANGES, on_rows

#: The feature that no model takes: the target's tokens, of which the decoder reads all but the last, one place later.
TARGET = "target"
#: What the decoder reads.
DECODER = "decoder_input_ids"


@runtime_checkable
class Pairs(Protocol):
    """A processor that knows sources and targets; see `models.pairs.PairProcessor`."""

    def pairs(self, sources: Sequence[str], targets: Sequence[str]) -> tuple[Mapping[str, Ragged], dict[int, str]]:
        """``input_ids``, ``decoder_input_ids`` and ``target`` of every pair, and why some are empty, by their place."""


def _on_source(change: Change) -> Change:
    """A change of texts, as one of the sources of pairs: what is to be written of them stays."""

    def changed(text: str, severity: int, generator: np.random.Generator) -> str:
        source, target = read_pair(text)
        return pair_text(change(source, severity, generator), target)

    return changed


SOURCE_CORRUPTIONS: Mapping[str, Corruption] = {
    name: on_rows(_on_source(change)) for name, change in TEXT_CHANGES.items()
}


@dataclass(frozen=True, kw_only=True)
class Seq2Seq:
    """Sources with their targets, token by token of the target; see `TokenTask`."""

    name: str = "seq2seq"
    input_column: str = "text"
    answering: str = DECODER
    corruptions: Mapping[str, Corruption] = field(default_factory=lambda: SOURCE_CORRUPTIONS)

    def encode(self, rows: pa.Table, processor: Processor) -> Encoded:
        """Tokenise: ``input_ids``, ``decoder_input_ids`` and ``target``; a source without a target goes apart.

        Raises:
            ModelError: the processor knows no pairs.
        """
        if not isinstance(processor, Pairs):
            raise ModelError(
                f"a {type(processor).__name__} cannot encode a source with its target: wrap the tokenizer "
                "with ray_distill.models.text.seq2seq_processor.pair_processor"
            )
        pairs, row_ids, rejected = sift(rows, self.input_column, _read_pair)
        features, reasons = processor.pairs([source for source, _ in pairs], [target for _, target in pairs])
        apart = tuple(Rejected(row_id=row_ids[row].as_py(), reason=reasons[row]) for row in sorted(reasons))
        found = encoded(row_ids, dict(features), rejected, processor)
        kept = found.take(np.setdiff1d(np.arange(len(pairs)), sorted(reasons)).astype(np.int64))
        return Encoded(row_ids=kept.row_ids, features=kept.features, rejected=(*rejected, *apart))

    def collate(self, encoded: Encoded, index: npt.NDArray[np.int64]) -> Batch:
        """Token ids int64 of sources ``[B, S]`` and decoder ``[B, L]``, padded at the end, and the masks of both."""
        batch = {name: pad_sequences(feature, index) for name, feature in encoded.features.items() if name != TARGET}
        return {
            **batch,
            "attention_mask": real_tokens(encoded.features["input_ids"], index),
            "decoder_attention_mask": real_tokens(encoded.features[DECODER], index),
        }

    def positions(self, encoded: Encoded) -> Ragged:
        """Every token of the decoder: at p it predicts the target's token p, the first from its start token."""
        offsets = encoded.features[DECODER].offsets
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
        return Ragged(values=within.astype(np.int32), offsets=offsets)

    def truth(self, encoded: Encoded) -> Ragged:
        """The target."""
        return encoded.features[TARGET]


def _read_pair(data: bytes) -> tuple[str, str]:
    """Source and target of a row.

    Raises:
        Unusable: it is no pair, or one of them is missing.
    """
    try:
        pair: Pair = read_pair(read_text(data))
    except Unusable:
        raise
    except ValueError as error:
        raise Unusable(str(error)) from error
    if not pair.source.strip():
        raise Unusable("empty source")
    if pair.target is None or not pair.target.strip():
        raise Unusable("no target: it must be written before it can be labelled")
    return pair.source, pair.target
