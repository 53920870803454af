"""Labelled rows by split and class, as gate, plan and report count them."""

import json
from pathlib import Path
from typing import Any

import pytest

from ray_distill.config import SnapshotConfig
from ray_distill.snapshots import open_snapshot, take_snapshot
from ray_distill.snapshots.labelled_rows import labelled_rows


@pytest.mark.parametrize(
    ("truth", "labels", "labelled", "classes"),
    [
        ("class", ["a", "b", None, None], 100, {"a": 50, "b": 50}),
        ("classes", [["a", "b"], [], None, None], 100, {"a": 50, "b": 50}),
        ("none", ["a", "b", None, None], 200, {}),
    ],
)
def test_labelled_rows_are_counted_by_split_and_class(
    tmp_path: Path, truth: Any, labels: list[Any], labelled: int, classes: dict[str, int]
) -> None:
    """A row with a set counts for each of its classes; where the truth follows from the input, every row has one."""
    rows = [{"text": f"row {at}", "label": labels[at % 4]} for at in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = SnapshotConfig.model_validate({"source": str(tmp_path / "a.jsonl"), "columns": {"label": "label"}})
    ref = take_snapshot(config, input_column="text", seed=0, url=str(tmp_path / "snapshots"), truth=truth)
    manifest = open_snapshot(ref).manifest
    found = labelled_rows(manifest)
    assert {name: part.rows for name, part in found.items()} == {n: part.rows for n, part in manifest.splits.items()}
    assert sum(part.labelled for part in found.values()) == labelled
    assert {name: sum(part.classes[name] for part in found.values()) for name in classes} == classes
