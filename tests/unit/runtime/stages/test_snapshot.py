"""Snapshots of a campaign: taken as its task reads rows, and refused by a task that reads them otherwise."""

import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign, LabelsConfig, SnapshotConfig, parse_config
from ray_distill.errors import ConfigError, ModelError, SnapshotError
from ray_distill.models.heads.fit_head import fitted_rows
from ray_distill.models.io.embedding_table import read_neighbours
from ray_distill.runtime.campaign import snapshot_key
from ray_distill.runtime.labelling import identify_teacher
from ray_distill.runtime.labelling.identify_teacher import prepare_teacher
from ray_distill.runtime.stages import label
from ray_distill.runtime.stages.preflight import check
from ray_distill.runtime.stages.relabel import _traffic
from ray_distill.runtime.stages.snapshot import freeze, freeze_ceiling, open_for
from ray_distill.runtime.stages.train import refuse_large_batch
from ray_distill.snapshots import SPLITS, open_snapshot, take_snapshot
from ray_distill.snapshots.manifest import Truth
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.models import write_tiny_text_model
from tests.labs.tiny_tokenizers import SENTENCES, make_alike, write_classifier

SNAPSHOT = SnapshotRef(url="u", fingerprint="s")


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


def _with_views(folder: Path, task: str = "text_classification", rows: int = 200, **augment: object) -> Campaign:
    texts = [f"row {n} of the traffic of today" for n in range(rows)]
    pq.write_table(pa.table({"text": texts, "label": ["a", "b"] * (rows // 2)}), folder / "traffic.parquet")
    return parse_config(
        {
            "campaign": "views",
            "task": task,
            "output": str(folder / "out"),
            "snapshot": {
                "source": str(folder / "traffic.parquet"),
                "columns": {"label": "label"},
                "classes": ["a", "b"],
                "augment": augment,
            },
            "labels": {"teacher": {"model": "m:f"}, "signal": {"estimator": "topk", "k": 2}},
        }
    )


def test_a_campaign_with_views_freezes_its_rows_and_then_their_views(tmp_path: Path) -> None:
    """Both snapshots are there; views of newer traffic and of the teacher's own rows are not made."""
    config = _with_views(tmp_path, views=2, kinds={"cut": 0.5})
    derived = open_snapshot(freeze(config))
    about = derived.manifest.derived
    assert about is not None and about["augment"] == {"views": 2, "kinds": {"cut": 0.5}, "seed": 0}
    folders = {path.name for path in (tmp_path / "out" / "snapshots").iterdir()}
    assert folders == {derived.ref.fingerprint, about["parent"]}
    plain = freeze(config, config.snapshot.traffic_alone(), empty_splits=True)
    assert plain.fingerprint == about["parent"]
    assert open_for("text_classification", derived.ref).manifest.view_counts is not None


def test_views_of_a_language_model_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    """Also by the command that only freezes."""
    config = _with_views(tmp_path, task="causal_lm", views=2)
    config = config.model_copy(update={"snapshot": config.snapshot.model_copy(update={"source": "nowhere.parquet"})})
    with pytest.raises(ConfigError, match="snapshot.augment: causal_lm learns the tokens of its rows"):
        freeze(config)
    with pytest.raises(ConfigError, match="snapshot.augment: causal_lm learns the tokens of its rows"):
        check(config, teacher=False)


def test_kinds_and_strengths_decide_the_snapshot(tmp_path: Path) -> None:
    """Other strengths, another number: another key; auto is a key of what it stands for."""
    configs = [
        _with_views(tmp_path, views=2),
        _with_views(tmp_path, views=3),
        _with_views(tmp_path, kinds={"cut": 0.5}),
        _with_views(tmp_path, kinds={"cut": 0.4}),
    ]
    assert len({snapshot_key(config) for config in configs}) == 4
    assert label.key_of(configs[0], SNAPSHOT) != label.key_of(_with_views(tmp_path, most_entropy=0.9), SNAPSHOT)


def _with_neighbours(folder: Path, teacher: str) -> Campaign:
    """A campaign whose rows have words that are tokens of the tiny tokenizers."""
    config = _with_views(folder, views=1, kinds={"neighbours": 0.5})
    texts = [f"{sentence} {number}" for number in range(34) for sentence in SENTENCES]
    pq.write_table(pa.table({"text": texts, "label": ["a", "b"] * (len(texts) // 2)}), folder / "traffic.parquet")
    labels = LabelsConfig.model_validate({"teacher": {"model": teacher}, "signal": {"estimator": "topk", "k": 2}})
    return config.model_copy(update={"labels": labels})


def test_words_are_replaced_by_neighbours_in_the_teachers_embeddings(tmp_path: Path) -> None:
    """Each differs from its row in words alone, of which the teacher has the neighbours; the same again elsewhere."""
    folder = tmp_path / "teacher"
    teacher = write_classifier(folder, "WordPiece")
    make_alike(folder, "parcel", "invoice", "engine")
    config = _with_neighbours(tmp_path, teacher.model)
    derived = open_snapshot(freeze(config))
    table = derived.read("train").to_pylist()
    rows, views = (
        {row["row_id"]: row for row in table if (row["view_parent"] is None) == plain} for plain in (True, False)
    )
    near, replaced = read_neighbours(teacher), 0
    for view in views.values():
        pairs = zip(rows[view["view_parent"]]["text"].split(), view["text"].split(), strict=True)
        changed = [(before.strip(","), after.strip(",")) for before, after in pairs if before != after]
        assert changed and all(after in dict(near(before)) for before, after in changed)
        assert view["view_kind"] == "neighbours" and view["label"] is None
        replaced += ("parcel", "invoice") in changed or ("invoice", "parcel") in changed
    assert len(views) > 20 and replaced
    again = freeze(config.model_copy(update={"output": str(tmp_path / "again")}))
    assert again.fingerprint == derived.ref.fingerprint


def test_the_teachers_files_decide_a_snapshot_of_neighbours(tmp_path: Path) -> None:
    """A changed teacher makes other views; for other kinds the teacher does not count."""
    folder = tmp_path / "teacher"
    teacher = write_classifier(folder, "WordPiece")
    config, plain = _with_neighbours(tmp_path, teacher.model), _with_views(tmp_path, kinds={"cut": 0.5})
    plain = plain.model_copy(update={"labels": config.labels})
    keys, first = [snapshot_key(config), snapshot_key(plain)], freeze(config)
    assert [snapshot_key(config), snapshot_key(plain)] == keys
    make_alike(folder, "the", "parcel", "not")
    assert snapshot_key(config) != keys[0] and snapshot_key(plain) == keys[1]
    assert freeze(config).fingerprint != first.fingerprint


def test_a_teacher_without_embeddings_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    """By every command that needs the teacher, and by the one that only freezes; training does not read it."""
    config = _with_neighbours(tmp_path, "ray_distill.testing.models:tiny_text_model")
    config = config.model_copy(update={"snapshot": config.snapshot.model_copy(update={"source": "nowhere.parquet"})})
    message = (
        "snapshot.augment.kinds: neighbours of words need the teacher's token embeddings, and "
        "ray_distill.testing.models:tiny_text_model is a function.*; name other kinds for this teacher"
    )
    with pytest.raises(ConfigError, match=message):
        freeze(config)
    with pytest.raises(ConfigError, match=message):
        check(config)
    check(config, teacher=False)
    pieces = str(write_tiny_text_model(tmp_path / "pieces", ("a", "b"), 0))
    with pytest.raises(ConfigError, match="has no tokens that are whole words; name other kinds for this teacher"):
        freeze(config.model_copy(update={"labels": LabelsConfig.model_validate({"teacher": {"model": pieces}})}))


def test_drift_is_measured_against_rows_not_views(tmp_path: Path) -> None:
    """Newer traffic has no views, so that views would look like drift."""
    derived = open_snapshot(freeze(_with_views(tmp_path, views=2)))
    parent = open_snapshot(f"{tmp_path}/out/snapshots/{(derived.manifest.derived or {})['parent']}")
    expected = {one for split in SPLITS for one in parent.read(split, ["row_id"])["row_id"].to_pylist()}
    assert set(_traffic(derived).to_pylist()) == expected == set(_traffic(parent).to_pylist())
    assert sum(shard.rows for shard in derived.shards) > len(expected)


def test_a_head_is_fitted_on_rows_not_views(tmp_path: Path) -> None:
    """Else each number of views would be another teacher, whose labels are not used again."""
    config = _with_views(tmp_path, views=2)
    model = write_tiny_text_model(tmp_path / "encoder", ("a", "b"), 0)
    teacher = {"teacher": {"model": str(model), "head": {"pool": "mean"}}}
    config = config.model_copy(update={"labels": LabelsConfig.model_validate(teacher)})
    derived = open_snapshot(freeze(config))
    fitted = prepare_teacher(config, derived.ref, None).head_url
    plain = prepare_teacher(config, freeze(config, config.snapshot.traffic_alone()), None).head_url
    assert fitted is not None and fitted == plain
    assert len(fitted_rows(fitted)) == (derived.manifest.view_counts or {})["rows"]


@pytest.mark.parametrize(("actors", "cores", "threads"), [(2, 16, 6), (2, 4, 4), (1, 16, 3)])
def test_a_head_is_fitted_with_the_threads_of_all_actors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, actors: int, cores: int, threads: int
) -> None:
    """They start after it: three threads each, at most those of the node; afterwards there are as many as before."""
    config = _with_views(tmp_path, views=1)
    model = write_tiny_text_model(tmp_path / "encoder", ("a", "b"), 0)
    labels = {
        "teacher": {"model": str(model), "head": {"pool": "mean"}},
        "resources": {"actors": [1, actors], "cpus": 3.5},
    }
    config = config.model_copy(update={"labels": LabelsConfig.model_validate(labels)})
    before, used = torch.get_num_threads(), list[int]()

    def note(*_: object, **__: object) -> str:
        used.append(torch.get_num_threads())
        raise ModelError("noted")

    monkeypatch.setattr(identify_teacher, "fit_head", note)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    with pytest.raises(ModelError, match="noted"):
        prepare_teacher(config, freeze(config), None)
    assert used == [threads] and torch.get_num_threads() == before
