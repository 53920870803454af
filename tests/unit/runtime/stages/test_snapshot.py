"""Snapshots of a campaign: taken as its task reads rows, and refused by a task that reads them otherwise."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import SnapshotConfig, parse_config
from ray_distill.errors import ConfigError, SnapshotError
from ray_distill.runtime.stages.snapshot import freeze, freeze_ceiling, open_for
from ray_distill.runtime.stages.train import refuse_large_batch
from ray_distill.snapshots import take_snapshot
from ray_distill.snapshots.manifest import Truth
from ray_distill.tasks.catalogue import TASKS


def _taken(folder: Path, truth: Truth) -> SnapshotRef:
    labels = [["a"]] if truth == "classes" else ["a"]
    pq.write_table(pa.table({"text": [f"row {n}" for n in range(200)], "label": labels * 200}), folder / "a.parquet")
    config = SnapshotConfig.model_validate({"source": str(folder / "a.parquet"), "columns": {"label": "label"}})
    return take_snapshot(config, input_column="text", seed=0, url=str(folder / "snapshots"), truth=truth)


def test_a_snapshot_of_another_kind_of_labels_is_refused_by_both_names(tmp_path: Path) -> None:
    """Sets are not one class; a task whose truth follows from the input accepts any kind."""
    sets = _taken(tmp_path, "classes")
    with pytest.raises(
        SnapshotError,
        match="the snapshot has a set of classes a row, text_classification reads one class a row: take a snapshot",
    ):
        open_for("text_classification", sets)
    with pytest.raises(SnapshotError, match="has no label a row, text_classification reads one class a row"):
        open_for("text_classification", _taken(tmp_path, "none"))
    assert open_for("causal_lm", sets).manifest.truth == "classes"
    assert open_for("text_classification", _taken(tmp_path, "class")).classes == ("a",)


def test_a_snapshot_of_other_inputs_is_refused_by_both_names(tmp_path: Path) -> None:
    """Texts are no images."""
    with pytest.raises(SnapshotError, match="the snapshot has the inputs 'text', image_classification reads 'image'"):
        open_for("image_classification", _taken(tmp_path, "class"))


@pytest.mark.parametrize(("batch", "refused"), [("auto", False), (128, False), (256, True), (4096, True)])
def test_a_batch_that_no_step_can_fill_is_refused(tmp_path: Path, batch: int | str, refused: bool) -> None:
    """By the field's name and with the rows that there are; one that the rows decide is not."""
    taken = _taken(tmp_path, "class")
    config = parse_config(
        {
            "campaign": "batch",
            "task": "text_classification",
            "snapshot": {"source": str(tmp_path / "a.parquet")},
            "labels": {"teacher": {"model": "m:f"}},
            "student": {"training": {"global_batch": batch}},
        }
    )
    if not refused:
        refuse_large_batch(config, taken)
        return
    with pytest.raises(
        ConfigError, match=f"student.training.global_batch: {batch} examples are more than the 1.. train"
    ):
        refuse_large_batch(config, taken)


def test_too_few_rows_of_the_teachers_own_are_refused_by_the_field_that_names_them(tmp_path: Path) -> None:
    """The stage `snapshot` reads them, before the teacher labels anything."""
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["x", "y"]}), tmp_path / "own.parquet")
    config = parse_config(
        {
            "campaign": "own",
            "task": "text_classification",
            "output": str(tmp_path / "out"),
            "snapshot": {"source": "traffic.parquet", "columns": {"label": "label"}, "classes": ["x", "y"]},
            "labels": {"teacher": {"model": "m:f"}},
            "student": {"ceiling": str(tmp_path / "own.parquet")},
        }
    )
    with pytest.raises(SnapshotError, match="^student.ceiling: no row fell into the split"):
        freeze_ceiling(config, ("x", "y"))
    without = config.student.model_copy(update={"ceiling": None})
    assert freeze_ceiling(config.model_copy(update={"student": without}), ("x", "y")) is None


def test_images_are_verified_by_their_modality(tmp_path: Path) -> None:
    """The task says that its inputs are files, and which of them are not images."""
    images = []
    for n in range(200):
        sink = io.BytesIO()
        Image.new("L", (4, 4), n).save(sink, "PNG")
        images.append({"image": sink.getvalue(), "label": "ab"[n % 2]})
    pq.write_table(pa.Table.from_pylist([*images, {"image": b"noise", "label": "a"}]), tmp_path / "a.parquet")
    source = {"source": str(tmp_path / "a.parquet"), "columns": {"label": "label"}}
    config = parse_config(
        {
            "campaign": "images",
            "task": "image_classification",
            "output": str(tmp_path / "out"),
            "snapshot": source,
            "labels": {"teacher": {"model": "x"}},
        }
    )
    opened = open_for(config.task, freeze(config))
    assert opened.manifest.rows.kept == 200 and opened.manifest.quarantined == {"undecodable image": 1}


def test_tasks_say_how_their_labels_are_read() -> None:
    """Only the tokens of a text are its own truth."""
    assert {name: task.answers.truth for name, task in TASKS.items() if task.answers.truth == "none"} == {
        "causal_lm": "none",
        "seq2seq": "none",
    }
