"""Traffic of which no row is labelled, and a labelled test set of one's own: from the files to a verdict."""

from pathlib import Path

import pytest

from ray_distill.artifacts import Verdict
from ray_distill.runtime import campaign
from ray_distill.snapshots.labelled_rows import labelled_rows
from ray_distill.snapshots.reader import open_snapshot
from tests.labs import campaign as lab

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

TRAFFIC, TEST = lab.texts(400, seed=3)[:300], lab.texts(400, seed=3)[280:]


def test_unlabelled_traffic_is_judged_by_a_test_set_of_ones_own(tmp_path: Path) -> None:
    """Classes are the teacher's, rows that both have teach nothing, and the verdict rests on all labelled rows."""
    source = lab.write_rows(tmp_path / "traffic.jsonl", [(text, None) for text, _ in TRAFFIC])
    test = lab.write_rows(tmp_path / "test.jsonl", TEST)
    value = lab.config_of(
        tmp_path,
        source,
        {"model": str(lab.write_teacher(tmp_path / "teacher"))},
        snapshot={"source": str(source), "test": {"source": str(test), "columns": {"label": "label"}}},
        labels__check={},
        student__losses={"soft": {}},
        gate={"limits": {"accuracy": {"min": 0.4}, "ece": None}},
    )
    result = campaign.run(lab.load(tmp_path / "campaign.yaml", value))
    snapshot = open_snapshot(result.snapshot)
    counts = labelled_rows(snapshot.manifest)
    assert snapshot.classes == lab.CLASSES and snapshot.manifest.own == {"test": 20}
    assert [counts[name].labelled for name in ("train", "validation", "calibration", "test")] == [0, 0, 0, 120]
    assert "baseline_hard_labels" not in result.students
    assert result.report.models["student"].metrics["accuracy"].n == 120
    assert result.decision.verdict is Verdict.PROMOTE
    assert "there is no baseline_hard_labels to beat" in " ".join(result.decision.reasons)
