"""Find the task of somebody's own: a package beside the tests, on the path as a user's would be."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

SOURCE = Path(__file__).parents[1] / "data" / "own_tasks" / "src"
TASK = "sensor_readings.tasks:machines"
CLASSES = ("idle", "humming", "shaking")


def put_on_path(patch: pytest.MonkeyPatch) -> None:
    """Let this process, and those that it starts, import the package."""
    patch.syspath_prepend(str(SOURCE))
    rest = os.environ.get("PYTHONPATH")
    patch.setenv("PYTHONPATH", os.pathsep.join([str(SOURCE), *([rest] if rest else [])]))


def readings(rows: int, seed: int) -> list[tuple[str, str]]:
    """Return readings as texts, and the machines' classes: the pair of readings that is greatest names it."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(rows, 6))
    kinds = values.reshape(rows, 3, 2).sum(axis=2).argmax(axis=1)
    return [(_text(row), CLASSES[kind]) for row, kind in zip(values, kinds, strict=True)]


def _text(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:.3f}" for number in numbers)
