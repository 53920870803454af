"""Text classification: one text in, one distribution over classes out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ray_distill.artifacts import Estimate
from ray_distill.evaluation.measures.classification import measure_classification
from ray_distill.labels.model.signal import Signal
from ray_distill.tasks.base import Batch, Corruption, Encoded, Processor
from ray_distill.tasks.classification import Unusable, encoded, log_probabilities, pad_sequences, real_tokens, sift
from ray_distill.tasks.text_corruptions import TEXT_CORRUPTIONS


@dataclass(frozen=True, kw_only=True)
class TextClassification:
    """The task ``text_classification``; see `Task` for what each method promises."""

    name: str = "text_classification"
    input_column: str = "text"
    corruptions: Mapping[str, Corruption] = field(default_factory=lambda: TEXT_CORRUPTIONS)

    def encode(self, rows: pa.Table, processor: Processor) -> Encoded:
        """Tokenise; missing, blank and not decodable texts go apart. Long ones are cut at the processor's limit."""
        texts, row_ids, rejected = sift(rows, self.input_column, read_text)
        return encoded(row_ids, dict(processor.texts(texts)), rejected, processor)

    def collate(self, encoded: Encoded, index: npt.NDArray[np.int64]) -> Batch:
        """Token ids int64 ``[B, L]``, padded at the end to the longest of the batch, and ``attention_mask``."""
        batch = {name: pad_sequences(feature, index) for name, feature in encoded.features.items()}
        return {**batch, "attention_mask": real_tokens(encoded.features["input_ids"], index)}

    def positions(self, encoded: Encoded) -> None:
        """A row has one answer."""

    def align(self, signal: Signal, encoded: Encoded) -> Signal:
        """The signal itself: a row has one position."""
        return signal

    def predict(self, logits: torch.Tensor, row_ids: pa.Array) -> pa.Table:
        """``row_id`` and ``logp``."""
        return log_probabilities(logits, row_ids)

    def measure(self, predictions: pa.Table, *, seed: int, bootstrap: int, bins: int) -> dict[str, Estimate]:
        """Accuracy, macro-F1, NLL, ECE; against a teacher agreement and KL."""
        return measure_classification(predictions, seed=seed, bootstrap=bootstrap, bins=bins)


def read_text(data: bytes) -> str:
    """Decode one text.

    Raises:
        Unusable: it is not UTF-8, or blank.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable(f"not UTF-8: {error.reason} at byte {error.start}") from error
    if not text.strip():
        raise Unusable("empty text")
    return text
