"""Which views teach: not those on which the teacher is unsure, nor those of rows that must not teach or are judged."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import Campaign, SnapshotConfig, TrainingConfig, parse_config
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Family
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.models.core.checkpoint_files import read_facts
from ray_distill.models.io.load import load_model
from ray_distill.runtime.stages.count_views import count_views, in_words
from ray_distill.snapshots.augment.add_views import add_views
from ray_distill.snapshots.augment.kinds import Chosen
from ray_distill.snapshots.augment.read_views import views_of
from ray_distill.snapshots.labelled_rows import views_in_words
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.snapshots.take import take_snapshot
from ray_distill.students.arms import arm_by_name, arm_rows
from ray_distill.students.data.open_data import Opened, open_data
from ray_distill.students.data.open_sources import open_sources
from ray_distill.students.data.view_filter import filter_views
from ray_distill.students.job import TrainingJob, arm_plan, learn_of
from ray_distill.students.process_group import current_ranks
from ray_distill.students.run import run_arms
from ray_distill.students.telemetry.reporter import SilentReporter
from ray_distill.tasks.inputs.text_views import TEXT_VIEWS
from ray_distill.testing.labels import fake_manifest, label_all
from ray_distill.testing.models import write_tiny_text_model

CLASSES = tuple(f"class{i}" for i in range(5))
#: A share of the largest entropy that about half of the fake teacher's answers exceed.
MOST = 0.85


@dataclass(frozen=True, kw_only=True)
class Lab:
    folder: Path
    parent: Snapshot
    snapshot: Snapshot
    labels: LabelSetRef


def _lab(folder: Path, family: Family = "categorical") -> Lab:
    generator = np.random.default_rng(0)
    words = [" ".join(generator.choice(list("abcdefg"), 6)) + f" z{n}" for n in range(200)]
    labels: list[Any] = [CLASSES[n % 5] if n % 2 else None for n in range(200)]
    if family == "bernoulli":
        labels = [None if label is None else [label] for label in labels]
    pq.write_table(pa.table({"text": words, "label": labels}), folder / "rows.parquet")
    config = SnapshotConfig(
        source=str(folder / "rows.parquet"),
        classes=CLASSES,
        columns={"label": "label"},
        shard_rows=40,
        splits={"train": 0.6, "validation": 0.2, "calibration": 0.1, "test": 0.1},
    )
    url, truth = str(folder / "snapshots"), "class" if family == "categorical" else "classes"
    parent = open_snapshot(take_snapshot(config, input_column="text", seed=1, url=url, truth=truth))
    automatic = {name: kind for name, kind in TEXT_VIEWS.items() if kind.automatic}
    chosen = [Chosen(name=name, kind=kind, strength=kind.strength) for name, kind in automatic.items()]
    snapshot = open_snapshot(add_views(parent, chosen, views=2, seed=1, url=url, shard_rows=40))
    label_all(str(folder / "labels"), fake_manifest(unit_rows=7, family=family), snapshot)
    return Lab(folder=folder, parent=parent, snapshot=snapshot, labels=open_store(str(folder / "labels")).ref(snapshot))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return _lab(tmp_path_factory.mktemp("views"))


def _config(lab: Lab, most: float | None = None, **student: Any) -> Campaign:
    return parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "output": str(lab.folder / "out"),
            "snapshot": {"source": "s", "augment": {"views": 2, "most_entropy": most}},
            "labels": {"teacher": {"model": "m:f"}, "store": str(lab.folder / "labels")},
            "student": {"losses": {"soft": {}, "hard": {}}, **student},
        }
    )


def _opened(
    lab: Lab, most: float | None = None, *, fitted: rowids.RowIds | None = None, stream: str = "never"
) -> Opened:
    """Open the training rows as a rank does."""
    model_folder = lab.folder / "student"
    if not model_folder.exists():
        write_tiny_text_model(model_folder, CLASSES, 0)
    url = None
    if fitted is not None:
        url = str(lab.folder / "fitted.parquet")
        pq.write_table(pa.table({"row_id": rowids.to_arrow(fitted)}), url)
    config = _config(lab, most)
    labelled = [(lab.snapshot, open_label_set(lab.labels, lab.snapshot))]
    model = load_model(str(model_folder), task=config.task)
    sources = open_sources(config, labelled, model, layers=(), teacher_rows_url=url)
    return open_data(sources, TrainingConfig(stream=stream, engine="torch"), current_ranks())


def _ids(found: Opened) -> set[str]:
    return set(found.train.ids_of(np.arange(found.train.rows, dtype=np.int64)))


def _rows(lab: Lab) -> list[dict[str, Any]]:
    return lab.snapshot.read("train").to_pylist()


def _entropies(lab: Lab) -> dict[str, float]:
    ids, signal = open_label_set(lab.labels).read()
    found = signal.distributions
    return {one.as_py().hex(): float(value) for one, value in zip(ids, found.entropy, strict=True)}


def test_views_on_which_the_teacher_is_unsure_are_left_out_and_rows_never(lab: Lab) -> None:
    """By the entropy of the store, as a share of that of a uniform answer; rows with such answers stay."""
    entropy, limit = _entropies(lab), MOST * math.log(5)
    views = {row["row_id"].hex() for row in _rows(lab) if row["view_parent"] is not None}
    unsure = {one for one in views if entropy[one] > limit}
    assert 10 < len(unsure) < len(views) - 10 and any(
        entropy[row["row_id"].hex()] > limit for row in _rows(lab) if row["view_parent"] is None
    )
    found = filter_views(lab.snapshot, open_label_set(lab.labels), MOST)
    assert set(rowids.hexadecimal(found.unsure)) == unsure and found.kept == len(views) - len(unsure)
    assert count_views(lab.labels, MOST) == {"teach": found.kept, "unsure": len(unsure)}
    assert in_words({"teach": 1, "unsure": 2}).endswith("2 teach nobody, because the teacher is unsure on them")
    every = {row["row_id"].hex() for row in _rows(lab)}
    assert _ids(_opened(lab, MOST)) == every - unsure and _ids(_opened(lab)) == every


def test_without_a_limit_or_without_views_no_label_is_read(lab: Lab) -> None:
    """All views teach, or there are none."""
    kept = lab.snapshot.manifest.view_counts["kept"]
    assert filter_views(lab.snapshot, None, None).kept == sum(kept.values())  # type: ignore[arg-type]
    found = filter_views(lab.parent, None, MOST)  # type: ignore[arg-type]
    assert found.kept == len(found.unsure) == 0


def test_sets_of_classes_have_the_entropy_of_their_yes_or_no(tmp_path: Path) -> None:
    """The largest is that of as many coins as there are classes."""
    lab = _lab(tmp_path, "bernoulli")
    limit, entropy = 0.8 * 5 * math.log(2), _entropies(lab)
    views = [row["row_id"].hex() for row in _rows(lab) if row["view_parent"] is not None]
    found = filter_views(lab.snapshot, open_label_set(lab.labels), 0.8)
    assert sorted(rowids.hexadecimal(found.unsure)) == sorted(one for one in views if entropy[one] > limit)
    assert 0 < len(found.unsure) < len(views)


def test_streamed_rows_are_those_of_memory(lab: Lab) -> None:
    """The same rows in the same order, of the same units; the validation split has no view."""
    memory, streamed = _opened(lab, MOST), _opened(lab, MOST, stream="always")
    rows = np.arange(memory.train.rows, dtype=np.int64)
    assert streamed.train.ids_of(rows) == memory.train.ids_of(rows)
    assert streamed.units is not None and memory.units is not None and (streamed.units == memory.units).all()
    assert (streamed.train.labelled == memory.train.labelled).all() and (
        streamed.train.distil == memory.train.distil
    ).all()
    expected = {one.hex() for one in lab.parent.read("validation", ["row_id"])["row_id"].to_pylist()}
    assert set(memory.validation.ids_of(np.arange(memory.validation.rows))) == expected
    streamed.train.close()


def test_views_of_rows_that_the_teacher_was_fitted_on_are_not_taught_by_it(lab: Lab) -> None:
    """As their parents: its answers on them are nearly the labels it was fitted on. Their true labels stay."""
    fitted = np.sort(rowids.to_numpy(lab.parent.read("train", ["row_id"])["row_id"])[:15])
    found = _opened(lab, fitted=fitted)
    barred = {*rowids.hexadecimal(fitted), *rowids.hexadecimal(views_of(lab.snapshot, fitted))}
    ids = found.train.ids_of(np.arange(found.train.rows, dtype=np.int64))
    assert {one for one, taught in zip(ids, found.train.distil, strict=True) if not taught} == barred
    assert len(barred) > 30
    rows = {row["row_id"].hex(): row for row in _rows(lab)}
    labelled = {one for one, known in zip(ids, found.train.labelled, strict=True) if known}
    assert labelled == {one for one, row in rows.items() if row["label"] is not None}


def test_the_true_labels_baseline_has_the_views_that_keep_the_class(lab: Lab) -> None:
    """So that it differs from the student in its labels, and in the mixes, which have none."""
    train, kinds = _opened(lab).train, learn_of(_config(lab)).LOSSES
    taught = arm_rows("student", {"soft": None}, train, kinds)  # type: ignore[dict-item]
    labelled = arm_rows("baseline_hard_labels", {"hard": None}, train, kinds)  # type: ignore[dict-item]
    by_id = {row["row_id"].hex(): row["view_kind"] for row in _rows(lab)}
    assert {by_id[one] for one in train.ids_of(taught)} == {None, "word_dropout", "cut", "span_mix"}
    assert {by_id[one] for one in train.ids_of(labelled)} == {None, "word_dropout", "cut"}


def test_cards_of_arms_that_learn_from_the_snapshot_have_its_counts(lab: Lab, tmp_path: Path) -> None:
    """Not that of the ceiling, which learns from other rows; and no card without views."""
    write_tiny_text_model(tmp_path / "teacher", CLASSES, 0)
    config = _config(
        lab,
        model={"from": "teacher_layers", "keep": 1},
        training={"engine": "torch", "epochs": 1, "learning_rate": 0.001},
    )
    teacher = config.labels.teacher.model_copy(update={"model": str(tmp_path / "teacher")})
    config = config.model_copy(update={"labels": config.labels.model_copy(update={"teacher": teacher})})
    job = TrainingJob(config=config, labels=lab.labels, output=str(tmp_path / "out"), ceiling=lab.parent.ref)
    refs = run_arms(replace(job, arms=("student", "ceiling_true_labels")), SilentReporter())
    student, ceiling = (read_facts(ref.url) for ref in refs)
    assert student["views"] == lab.snapshot.manifest.view_counts and "views" not in ceiling
    assert student["training_rows"] == student["views"]["rows"] + sum(student["views"]["kept"].values())
    counted = f"In the snapshot, {views_in_words(student['views'])};"
    assert counted in (Path(refs[0].url) / "README.md").read_text()
    label_all(str(tmp_path / "labels"), fake_manifest(unit_rows=7), lab.parent)
    plain = replace(job, arms=("student",), labels=open_store(str(tmp_path / "labels")).ref(lab.parent))
    (ref,) = run_arms(replace(plain, output=str(tmp_path / "plain")), SilentReporter())
    assert "views" not in read_facts(ref.url) and "views" not in (Path(ref.url) / "README.md").read_text()


def test_views_of_rows_that_are_judged_here_do_not_come_in_with_a_mixture(lab: Lab, tmp_path: Path) -> None:
    """Another campaign may have in train what is tested here: neither the row nor a view of it teaches."""
    test = rowids.to_numpy(lab.snapshot.read("train", ["row_id"])["row_id"])
    judged = np.sort(rowids.to_numpy(lab.parent.read("train", ["row_id"])["row_id"])[:10])
    other = _judging(lab, tmp_path, judged)
    model_folder = lab.folder / "student"
    if not model_folder.exists():
        write_tiny_text_model(model_folder, CLASSES, 0)
    config = _config(lab, mixture={"how": "source", "others": [{"labels": "l.json"}]})
    labelled = [
        (other.snapshot, open_label_set(other.labels, other.snapshot)),
        (lab.snapshot, open_label_set(lab.labels, lab.snapshot)),
    ]
    model = load_model(str(model_folder), task=config.task)
    sources = open_sources(config, labelled, model, layers=(), teacher_rows_url=None)
    found = open_data(sources, TrainingConfig(stream="never", engine="torch"), current_ranks())
    second = found.train.ids_of(np.arange(found.sources[1], found.sources[2], dtype=np.int64))
    left_out = {*rowids.hexadecimal(judged), *rowids.hexadecimal(views_of(lab.snapshot, judged))}
    assert set(second) == set(rowids.hexadecimal(test)) - left_out and len(left_out) > 20


def _judging(lab: Lab, folder: Path, judged: rowids.RowIds) -> Lab:
    """Return a campaign without views, whose test split has rows of the other one's train split."""
    rows = lab.parent.read("train")
    tested = rows.filter(pa.array(rowids.is_in(rowids.to_numpy(rows["row_id"]), judged)))
    texts = [f"{letter} other {n}" for n in range(60) for letter in "ab"]
    pq.write_table(pa.table({"text": texts, "label": [CLASSES[0]] * 120}), folder / "rows.parquet")
    pq.write_table(pa.table({"text": tested["text"], "label": [CLASSES[1]] * len(tested)}), folder / "test.parquet")
    config = SnapshotConfig(
        source=str(folder / "rows.parquet"),
        classes=CLASSES,
        columns={"label": "label"},
        test={"source": str(folder / "test.parquet")},
    )
    snapshot = open_snapshot(take_snapshot(config, input_column="text", seed=1, url=str(folder / "snapshots")))
    label_all(str(folder / "labels"), fake_manifest(unit_rows=7), snapshot)
    return Lab(
        folder=folder, parent=snapshot, snapshot=snapshot, labels=open_store(str(folder / "labels")).ref(snapshot)
    )


def test_an_arm_trained_with_another_limit_is_another_arm(lab: Lab) -> None:
    """It is not reused; without a limit the plan is that of a campaign without views."""

    def plan(most: float | None) -> dict[str, Any]:
        job = TrainingJob(config=_config(lab, most), labels=lab.labels, output="", seed=0)
        return arm_plan(job, arm_by_name("student"))

    assert plan(0.5) != plan(0.6) != plan(None) and "most_entropy" not in plan(None)
