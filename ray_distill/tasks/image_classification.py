"""Image classification: one image in, one distribution over classes out."""

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
from ray_distill.tasks.classification import encoded, log_probabilities, sift
from ray_distill.tasks.image_corruptions import IMAGE_CORRUPTIONS
from ray_distill.tasks.images import decode_image


@dataclass(frozen=True, kw_only=True)
class ImageClassification:
    """The task ``image_classification``; see `Task` for what each method promises."""

    name: str = "image_classification"
    input_column: str = "image"
    corruptions: Mapping[str, Corruption] = field(default_factory=lambda: IMAGE_CORRUPTIONS)

    def encode(self, rows: pa.Table, processor: Processor) -> Encoded:
        """Decode, resize and normalise; missing and undecodable images go apart."""
        images, row_ids, rejected = sift(rows, self.input_column, decode_image)
        return encoded(row_ids, dict(processor.images(images)), rejected, processor)

    def collate(self, encoded: Encoded, index: npt.NDArray[np.int64]) -> Batch:
        """``pixel_values`` float32 ``[B, C, H, W]``."""
        return {
            name: torch.from_numpy(feature.values[feature.offsets[index]]) for name, feature in encoded.features.items()
        }

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
