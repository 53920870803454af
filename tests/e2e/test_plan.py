"""A plan beside the labelling run it is for: bytes as they come, nothing left behind, only what is missing counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from ray_distill.errors import DistillError
from ray_distill.labels.store.label_store import open_store
from ray_distill.runtime import campaign
from ray_distill.runtime.forecast.forecast import plan
from ray_distill.runtime.forecast.plan_report import PlanReport
from ray_distill.storage import files
from tests.labs import campaign as lab
from tests.labs import drawn

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

TRAFFIC = lab.texts(900, seed=31)
FORMS: dict[str, dict[str, Any]] = {
    "topk": {
        "signal": {"estimator": "topk", "k": 2, "encoding": "compact", "temperatures": [1, 2]},
        "hidden": {"layers": [0, -1], "dtype": "int8"},
        "unit_rows": 64,
    },
    "dense": {"signal": {"temperatures": [1, 2]}, "unit_rows": 512},
}


def planned(folder: Path, name: str, rows: int = 700) -> tuple[Any, PlanReport]:
    """A campaign of the spelling teacher with one of `FORMS`, and its plan; nothing but a snapshot is there, and the
    calibration that `label` uses."""
    source = lab.write_rows(folder / "rows.jsonl", lab.annotated(TRAFFIC[:rows], train_labels=20))
    teacher = {"model": "tests.labs.campaign:spelling_teacher", "arguments": {"fuse": str(folder / "fuse")}}
    value = lab.config_of(
        folder,
        source,
        teacher,
        labels={"teacher": teacher, **FORMS[name]},
        tracking={"enabled": False},
        plan={"rows": 256, "students": 2},
    )
    config = lab.load(folder / "campaign.yaml", value)
    report = plan(config)
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["kept", "snapshots", "state"]
    return config, report


@pytest.mark.parametrize("form", drawn.one_of(*FORMS))
def test_the_bytes_of_a_run_are_within_five_percent_of_its_plan(tmp_path: Path, form: str) -> None:
    """Labels and each hidden layer, in units of other sizes than were probed; then nothing is left, which is said; and
    of more traffic only the new rows are planned, with the store's own fits."""
    config, report = planned(tmp_path, form)
    assert (report.rows, report.rows_total, report.rows_reused, report.positions) == (700, 700, 0, 700)
    found = list((tmp_path / "out" / "kept" / "calibration").glob("*/found.json"))
    labels = campaign.label(config, report.snapshot)
    store = open_store(labels.store)
    store.log.refresh()
    assert json.loads(found[0].read_text())["fits"] == dict(store.manifest.fits), "label uses the plan's calibration"
    real = store.ledger.bytes_written(labels.log_length)
    assert report.bytes_total == pytest.approx(real, rel=0.05)
    assert set(report.bytes_hidden) == {str(layer) for layer in store.manifest.hidden}
    for layer in report.bytes_hidden:
        found = sum(item.size for item in files.list_files(files.join(labels.store, f"hidden.{layer}")))
        assert report.bytes_hidden[layer] == pytest.approx(found, rel=0.05)
    assert report.units == len(store.ledger) and 0 < report.seconds_once < report.seconds
    assert json.loads(report.to_json())["seconds"] == report.seconds
    # The student would have the config of a checkpoint, and this teacher has none: the note of each stage says so.
    assert [one.stage for one in report.stages] == ["label"] and report.stages[0].followed is None
    assert sum("is not in the forecast, because it could not be timed" in note for note in report.notes) == 2
    again = plan(config)
    assert again.stages[0].seconds == report.seconds and again.stages[0].followed is not None
    assert (again.rows, again.bytes_total, again.money) == (0, 0, 0) and "already" in again.notes[0]
    assert again.snapshot == report.snapshot
    if form == "topk":
        _assert_advice(report)
        _assert_more_is_planned_for_new_rows_alone(tmp_path, config, real)


def _assert_advice(report: PlanReport) -> None:
    """Three classes: all mass at k = 3; the recommended form is within the target; two students of four epochs."""
    assert report.curve[-1].k == 3 and report.curve[-1].mass["1"] == pytest.approx(1)
    assert report.recommended in report.options and report.recommended.nats <= report.target_nats
    assert report.break_even is not None and report.break_even.passes == 8
    assert all(1 <= found["0.95"] <= found["0.99"] <= found["width"] for found in report.ranks.values())


def _assert_more_is_planned_for_new_rows_alone(folder: Path, config: Any, known: int) -> None:
    """After 700 rows are labelled, into ``known`` bytes, 900 are 200 to label, into as many bytes as planned."""
    lab.write_rows(folder / "rows.jsonl", lab.annotated(TRAFFIC, train_labels=20))
    more = plan(config)
    assert (more.rows, more.rows_reused, more.rows_total) == (200, 700, 900)
    after = campaign.label(config, more.snapshot)
    store = open_store(after.store)
    store.log.refresh()
    assert more.bytes_total == pytest.approx(store.ledger.bytes_written(after.log_length) - known, rel=0.05)


def test_a_teacher_that_throws_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    """The scratch store is gone too."""
    (tmp_path / "fuse").touch()
    with pytest.raises(DistillError, match="fuse"):
        planned(tmp_path, "dense", rows=100)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["snapshots"]
