"""Causal language modelling: at each token of a text, a distribution over the next one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.tasks.base import Batch, Corruption, Encoded, Processor, Ragged, Rejected
from ray_distill.tasks.classification import encoded, pad_sequences, real_tokens, sift
from ray_distill.tasks.text_classification import read_text
from ray_distill.tasks.text_corruptions import TEXT_CORRUPTIONS

#: The feature that no model takes: 1 on each token that is to be predicted.
ANSWERED = "answered"


@runtime_checkable
class Language(Protocol):
    """A processor that knows conversations, and what is learnt of them; see `models.language.LanguageProcessor`."""

    def language(self, texts: list[str]) -> tuple[Mapping[str, Ragged], dict[int, str]]:
        """``input_ids`` and ``answered`` of every text, and why some are empty, by their place."""


@dataclass(frozen=True, kw_only=True)
class CausalLM:
    """Texts and conversations, token by token; see `TokenTask`."""

    name: str = "causal_lm"
    input_column: str = "text"
    answering: str = "input_ids"
    corruptions: Mapping[str, Corruption] = field(default_factory=lambda: TEXT_CORRUPTIONS)

    def encode(self, rows: pa.Table, processor: Processor) -> Encoded:
        """Tokenise: ``input_ids`` and ``answered``; texts in which nothing can be learnt go apart.

        A processor that knows no more than texts has all tokens answered but the first.
        """
        texts, row_ids, rejected = sift(rows, self.input_column, read_text)
        features, reasons = _tokens(texts, processor)
        lengths, learnt = np.diff(features["input_ids"].offsets), np.diff(_answers(features[ANSWERED]).offsets)
        for row in np.flatnonzero((lengths < 2) | (learnt == 0)).tolist():
            reasons.setdefault(row, "fewer than two tokens" if lengths[row] < 2 else "nothing to learn")
        apart = tuple(Rejected(row_id=row_ids[row].as_py(), reason=reasons[row]) for row in sorted(reasons))
        found = encoded(row_ids, dict(features), rejected, processor)
        kept = found.take(np.setdiff1d(np.arange(len(texts)), sorted(reasons)).astype(np.int64))
        return Encoded(row_ids=kept.row_ids, features=kept.features, rejected=(*rejected, *apart))

    def collate(self, encoded: Encoded, index: npt.NDArray[np.int64]) -> Batch:
        """Token ids int64 ``[B, L]``, padded at the end to the longest of the batch, and ``attention_mask``."""
        batch = {name: pad_sequences(feature, index) for name, feature in encoded.features.items() if name != ANSWERED}
        return {**batch, "attention_mask": real_tokens(encoded.features["input_ids"], index)}

    def positions(self, encoded: Encoded) -> Ragged:
        """Every token whose next one is to be predicted."""
        return _answers(encoded.features[ANSWERED])

    def truth(self, encoded: Encoded) -> Ragged:
        """The next token."""
        answered, tokens = self.positions(encoded), encoded.features["input_ids"]
        at = np.repeat(tokens.offsets[:-1], np.diff(answered.offsets)) + answered.values
        return Ragged(values=tokens.values[at + 1], offsets=answered.offsets)


def _tokens(texts: list[str], processor: Processor) -> tuple[dict[str, Ragged], dict[int, str]]:
    if isinstance(processor, Language):
        features, reasons = processor.language(texts)
        return dict(features), dict(reasons)
    features = processor.texts(texts)
    ids = features["input_ids"]
    return {**features, ANSWERED: Ragged(values=np.ones(len(ids.values), np.int8), offsets=ids.offsets)}, {}


def _answers(answered: Ragged) -> Ragged:
    """Tokens of each row (int32, ascending) that come before an answered one; before a row's first is none."""
    lengths = np.diff(answered.offsets)
    within = np.arange(len(answered.values)) - np.repeat(answered.offsets[:-1], lengths)
    flat = np.flatnonzero((answered.values != 0) & (within > 0))
    offsets = np.searchsorted(flat, answered.offsets).astype(np.int64)
    return Ragged(values=(within[flat] - 1).astype(np.int32), offsets=offsets)
