"""A modality of its own: one text of comma-separated numbers a row, in the column ``readings``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from ray_distill.config import Campaign, TeacherConfig
from ray_distill.errors import ModelError
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.tasks.encoded import Batch, Encoded
from ray_distill.tasks.inputs.corruptions import corrupt_column
from ray_distill.tasks.inputs.modality import Corruption, Floats, Index, Inputs, Processor
from ray_distill.tasks.inputs.rows import Unusable, encoded, one_row, sift

COLUMN = "readings"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Expect so many readings a row, and divide them by a unit."""

    width: int
    unit: float = 1.0

    @property
    def fingerprint(self) -> str:
        """Fingerprint of width and unit."""
        return fingerprint({"readings": self.width, "unit": self.unit})

    def features(self, rows: list[Floats]) -> dict[str, RaggedArray]:
        """Return ``readings`` float32 ``[R, F]``."""
        values = np.asarray(rows, np.float32).reshape(len(rows), self.width) / np.float32(self.unit)
        return {COLUMN: RaggedArray(values=values, offsets=np.arange(len(rows) + 1, dtype=np.int64))}


def read_numbers(data: bytes) -> Floats:
    """Read one row.

    Raises:
        Unusable: it is not a list of finite numbers.
    """
    try:
        found = np.array([float(part) for part in data.decode().split(",")])
    except ValueError as error:
        raise Unusable(f"not numbers: {error}") from error
    if not np.isfinite(found).all():
        raise Unusable("a reading is not finite")
    return found


def encode(rows: pa.Table, processor: Processor) -> Encoded:
    """Read the numbers; rows with other numbers of readings are rejected."""
    scale = cast(Scale, processor)

    def read(data: bytes) -> Floats:
        found = read_numbers(data)
        if len(found) != scale.width:
            raise Unusable(f"{len(found)} readings instead of {scale.width}")
        return found

    values, row_ids, rejected = sift(rows, COLUMN, read)
    return encoded(row_ids, scale.features(values), rejected, processor)


def collate(encoded: Encoded, index: Index) -> Batch:
    """Return ``readings`` float32 ``[B, F]``."""
    import torch

    return {COLUMN: torch.from_numpy(encoded.features[COLUMN].values[index])}


def example(processor: Processor) -> Encoded:
    """Encode a machine that stands still."""
    scale = cast(Scale, processor)
    return one_row(scale.features([np.zeros(scale.width)]))


def statistics(column: pa.ChunkedArray) -> dict[str, Floats]:
    """Return mean and spread of every row."""
    rows = [read_numbers(text.encode()) for text in column.to_pylist()]
    return {
        "mean": np.array([row.mean() for row in rows], np.float64),
        "spread": np.array([row.std() for row in rows], np.float64),
    }


def show(data: bytes | None) -> str:
    """Return the numbers as they are."""
    return f"readings: {(data or b'').decode(errors='replace')}"


def add_noise(text: str, severity: int, generator: np.random.Generator) -> str:
    """Add noise that grows with the severity."""
    found = read_numbers(text.encode())
    return ",".join(f"{value:.3f}" for value in found + generator.normal(scale=0.2 * severity, size=len(found)))


def noise(rows: pa.Table, severity: int, generator: np.random.Generator) -> pa.Table:
    """Corrupt readings by noise."""
    return corrupt_column(rows, COLUMN, add_noise, severity=severity, generator=generator)


def read_scale(folder: Path, model_config: Any, config: TeacherConfig) -> Processor:
    """Refuse: models of readings are functions."""
    raise ModelError(f"{config.model}: models of readings are given as module:function")


def refuse(config: Campaign) -> list[str]:
    """Refuse a column of targets."""
    target = config.snapshot.columns.target
    return [] if target is None else ["snapshot.columns.target: readings have no targets; leave it out"]


CORRUPTIONS: dict[str, Corruption] = {"noise": noise}

READINGS = Inputs(
    name="readings",
    column=COLUMN,
    processor=f"{__name__}:read_scale",
    encode=encode,
    collate=collate,
    example=example,
    statistics=statistics,
    show=show,
    corruptions=CORRUPTIONS,
    refuse=refuse,
)
