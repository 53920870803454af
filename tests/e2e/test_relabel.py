"""Newer traffic: only what is new is labelled, what cannot be is counted, and drift is told from chance."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import Campaign
from ray_distill.labels.store.reader import open_label_set
from ray_distill.runtime import campaign
from ray_distill.runtime.stages.relabel import RelabelReport
from tests.labs import campaign as lab

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

TRAFFIC = lab.texts(1000, seed=3)
OLD, REUSED = TRAFFIC[:500], TRAFFIC[100:500]
NEW = [(text, None) for text, _ in TRAFFIC[500:600]]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A campaign whose first 500 rows are labelled."""

    folder: Path
    config: Campaign
    fuse: Path
    labels: LabelSetRef

    def relabel(self, name: str, rows: list[tuple[str, str | None]]) -> RelabelReport:
        return campaign.relabel(self.config, str(lab.write_rows(self.folder / name, rows)))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, embedded_ray: None) -> Labelled:
    folder = tmp_path_factory.mktemp("relabel")
    fuse = folder / "fuse"
    teacher = {"model": "tests.labs.campaign:spelling_teacher", "arguments": {"fuse": str(fuse)}}
    source = lab.write_rows(folder / "old.jsonl", lab.annotated(OLD, train_labels=20))
    config = lab.load(folder / "campaign.yaml", lab.config_of(folder, source, teacher))
    labels = campaign.label(config, campaign.snapshot(config))
    return Labelled(folder=folder, config=config, fuse=fuse, labels=labels)


def test_of_traffic_that_overlaps_by_80_percent_only_the_new_fifth_is_labelled(labelled: Labelled) -> None:
    """400 of 500 rows are known: the other 100 pass through the teacher, once, and all 500 can be read."""
    before = lab.committed_rows(labelled.config.store_url)
    report = labelled.relabel("newer.jsonl", [*REUSED, *NEW])
    assert (report.rows_total, report.rows_reused, report.rows_labelled, report.rows_quarantined) == (500, 400, 100, 0)
    assert lab.committed_rows(labelled.config.store_url) - before == 100
    assert open_label_set(report.labels).rows == 500
    assert report.drift is not None and not report.drift.alarm
    assert report.recommendation == report.drift.recommendation == "nothing"
    assert report.teacher is not None and (report.teacher.by, report.teacher.fails) == ("confidence", False)


def test_the_same_traffic_again_never_asks_the_teacher(labelled: Labelled) -> None:
    """With a teacher that throws when it is asked, relabelling known traffic succeeds: nothing is left to do."""
    labelled.fuse.touch()
    try:
        report = labelled.relabel("again.jsonl", [*REUSED, *NEW])
    finally:
        labelled.fuse.unlink()
    assert (report.rows_total, report.rows_reused, report.rows_labelled, report.rows_quarantined) == (500, 500, 0, 0)
    assert report.teacher is None


def test_rows_that_cannot_be_used_are_counted_wherever_they_are_refused(labelled: Labelled) -> None:
    """A blank text is refused while freezing, one without a finite answer by the teacher; neither is tried again."""
    rows = [*REUSED, *NEW, (" ", None), ("!abcdef", None)]
    report = labelled.relabel("damaged.jsonl", rows)
    assert (report.rows_total, report.rows_reused, report.rows_labelled, report.rows_quarantined) == (501, 500, 0, 2)
    labelled.fuse.touch()
    try:
        again = labelled.relabel("damaged.jsonl", rows)
    finally:
        labelled.fuse.unlink()
    assert (again.rows_total, again.rows_reused, again.rows_labelled, again.rows_quarantined) == (501, 500, 0, 2)


def test_another_half_of_the_same_traffic_raises_no_alarm(labelled: Labelled) -> None:
    """Five hundred rows of the same kind as the reference: no test finds a difference that is sure and large."""
    report = labelled.relabel("half.jsonl", [(text, None) for text, _ in TRAFFIC[500:]])
    assert report.rows_labelled == 400
    assert report.drift is not None and not report.drift.alarm, report.drift


def test_shifted_classes_raise_the_alarm(labelled: Labelled) -> None:
    """One class is eight times as common as before: the teacher's classes are found to have moved, and large."""
    report = labelled.relabel("shifted.jsonl", [(text, None) for text, _ in lab.texts(300, seed=8, weights=(8, 1, 1))])
    assert report.rows_labelled == report.rows_total == 300
    assert report.drift is not None and report.drift.alarm
    assert any(finding.name == "classes" and finding.alarm for finding in report.drift.findings)
    assert report.drift.recommendation != "nothing"


def test_a_teacher_that_fails_on_newer_traffic_stores_nothing(labelled: Labelled) -> None:
    """Letters shifted by six: true labels show that the teacher mistakes every class, so the store stays as it is."""
    shift = str.maketrans("abcdefghijklmnopqr", "ghijklmnopqrabcdef")
    before = lab.committed_rows(labelled.config.store_url)
    report = labelled.relabel("turned.jsonl", [(text.translate(shift), kind) for text, kind in lab.texts(300, seed=9)])
    assert (report.outcome, report.recommendation) == ("teacher_fails", "replace_teacher")
    assert report.labels is None and report.drift is None and report.rows_labelled == 0
    assert report.teacher is not None and report.teacher.by == "labels" and report.teacher.labelled == 300
    assert lab.committed_rows(labelled.config.store_url) == before


def test_new_classes_are_named_and_their_rows_labelled(labelled: Labelled) -> None:
    """A fifth of the labels is of a class that the campaign does not have: the rows stay, as unlabelled ones."""
    rows = [(text, "wood" if at % 5 == 0 else kind) for at, (text, kind) in enumerate(lab.texts(100, seed=12))]
    report = labelled.relabel("wood.jsonl", rows)
    assert (report.outcome, report.rows_labelled, report.rows_quarantined) == ("labelled", 100, 0)
    assert report.new_classes == {"wood": 20}
    assert report.teacher is not None and report.teacher.labelled == 80


def test_newer_traffic_needs_no_labels_and_no_splits(labelled: Labelled) -> None:
    """Five texts without a column of labels: no split suffices, nothing is compared, and all are labelled."""
    rows = [text for text, _ in lab.texts(5, seed=10)]
    source = labelled.folder / "bare.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
    report = campaign.relabel(labelled.config, str(source))
    assert (report.outcome, report.rows_labelled) == ("labelled", 5)
    assert (report.drift, report.recommendation) == (None, "wait")


def test_a_head_is_fitted_once_and_labels_newer_traffic_without_labels(tmp_path: Path) -> None:
    """A head fitted again would be another teacher: the store keeps the one it began with."""
    teacher = {"model": str(lab.write_teacher(tmp_path / "encoder")), "head": {"pool": "mean"}}
    source = lab.write_rows(tmp_path / "old.jsonl", lab.annotated(OLD, train_labels=40))
    config = lab.load(
        tmp_path / "head.yaml", lab.config_of(tmp_path, source, teacher, labels__check={"beat_majority": False})
    )
    newer = lab.write_rows(tmp_path / "newer.jsonl", [*((text, None) for text, _ in REUSED), *NEW])
    campaign.label(config, campaign.snapshot(config))
    report = campaign.relabel(config, str(newer))
    assert (report.rows_total, report.rows_reused, report.rows_labelled, report.rows_quarantined) == (500, 400, 100, 0)
