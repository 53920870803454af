"""A source and its target a row (summaries, translations).

The decoder predicts the target token by token.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from ray_distill.config import Campaign
from ray_distill.errors import ModelError
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.snapshots.pairs import Pair, pair_text, read_pair
from ray_distill.tasks.encoded import Batch, Encoded, Rejected
from ray_distill.tasks.inputs.corruptions import Change
from ray_distill.tasks.inputs.modality import Corruption, Index, Inputs, Processor
from ray_distill.tasks.inputs.padding import pad_sequences, real_tokens
from ray_distill.tasks.inputs.rows import Unusable, encoded, one_row, sift
from ray_distill.tasks.inputs.text import COLUMN, example, read_text, show, statistics
from ray_distill.tasks.inputs.text_corruptions import TEXT_CHANGES, on_rows

#: The feature that no model takes: the target's tokens, of which the decoder reads all but the last, one place later.
TARGET = "target"
#: The decoder's input.
DECODER = "decoder_input_ids"


@runtime_checkable
class Pairs(Protocol):
    """A processor of sources and targets; see `models.text.seq2seq_processor.PairProcessor`."""

    def pairs(self, sources: Sequence[str], targets: Sequence[str]) -> tuple[Mapping[str, RaggedArray], dict[int, str]]:
        """Return the features of every pair, and by their place the reasons why some are empty.

        The features are ``input_ids``, ``decoder_input_ids`` and ``target``.
        """


def _on_source(change: Change) -> Change:
    """Apply a change of texts to the sources of pairs; their targets stay."""

    def changed(text: str, severity: int, generator: np.random.Generator) -> str:
        source, target = read_pair(text)
        return pair_text(change(source, severity, generator), target)

    return changed


SOURCE_CORRUPTIONS: Mapping[str, Corruption] = {
    name: on_rows(_on_source(change)) for name, change in TEXT_CHANGES.items()
}


def encode(rows: pa.Table, processor: Processor) -> Encoded:
    """Tokenise to ``input_ids``, ``decoder_input_ids`` and ``target``.

    A source without a target is rejected.

    Raises:
        ModelError: the processor reads no pairs.
    """
    if not isinstance(processor, Pairs):
        raise ModelError(
            f"a {type(processor).__name__} cannot encode a source with its target: wrap the tokenizer "
            "with ray_distill.models.text.seq2seq_processor.pair_processor"
        )
    pairs, row_ids, rejected = sift(rows, COLUMN, _read_pair)
    features, reasons = processor.pairs([source for source, _ in pairs], [target for _, target in pairs])
    apart = tuple(Rejected(row_id=row_ids[row].as_py(), reason=reasons[row]) for row in sorted(reasons))
    found = encoded(row_ids, dict(features), rejected, processor)
    kept = found.take(np.setdiff1d(np.arange(len(pairs)), sorted(reasons)).astype(np.int64))
    return Encoded(row_ids=kept.row_ids, features=kept.features, rejected=(*rejected, *apart))


def collate(encoded: Encoded, index: Index) -> Batch:
    """Return token ids int64 of sources ``[B, S]`` and decoder ``[B, L]``, and both masks.

    Rows are padded at the end.
    """
    batch = {name: pad_sequences(feature, index) for name, feature in encoded.features.items() if name != TARGET}
    return {
        **batch,
        "attention_mask": real_tokens(encoded.features["input_ids"], index),
        "decoder_attention_mask": real_tokens(encoded.features[DECODER], index),
    }


def _read_pair(data: bytes) -> tuple[str, str]:
    """Return source and target of a row.

    Raises:
        Unusable: the row is not a pair, or one of the two is missing.
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


def _example(processor: Processor) -> Encoded:
    return one_row(processor.pairs(["a"], ["a"])[0]) if isinstance(processor, Pairs) else example(processor)


def _refuse(config: Campaign) -> list[str]:
    if config.snapshot.columns.target is None:
        return [f"snapshot.columns.target: {config.task} needs the column of what is to be written"]
    settings = config.labels.teacher.language
    wrong = []
    if settings.format != "text":
        wrong.append(
            "labels.teacher.language.format: a source and its target are texts, not a conversation: leave it "
            "out, or take the task causal_lm"
        )
    wrong += [
        f"evaluation.{name}: {config.task} models write targets of sources, and go on from no prompt; leave it out"
        for name in ("prompts", "lm_eval")
        if getattr(config.evaluation, name)
    ]
    sequences, longest = config.sequences, settings.target_length
    if sequences is not None and longest is not None and sequences.new_tokens > longest:
        wrong.append(
            f"sequences.new_tokens is {sequences.new_tokens}, more than the {longest} tokens of a target that "
            "are learnt (labels.teacher.language.target_length): lower the one or raise the other"
        )
    if config.evaluation.overlap and not all(map(find_spec, ("sacrebleu", "rouge_score"))):
        wrong.append("evaluation.overlap: ROUGE and chrF need optional packages: pip install 'ray-distill[seq2seq]'")
    if config.student.training.packed:
        wrong.append(
            "student.training.packed: an encoder reads one source a row, and a decoder attends to all of it, so "
            "rows cannot be put together: leave it out"
        )
    return wrong


PAIR = Inputs(
    name="pair",
    column=COLUMN,
    processor="ray_distill.models.text.seq2seq_processor:read_pair_processor",
    adapt="ray_distill.models.text.tokenizer_match:adapt_pairs",
    encode=encode,
    collate=collate,
    example=_example,
    statistics=statistics,
    show=show,
    answering=DECODER,
    corruptions=SOURCE_CORRUPTIONS,
    form=lambda config: "pair",
    refuse=_refuse,
)
