"""Unlabelled traffic, with views, and a labelled test set of one's own: from the files to a verdict."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ray_distill import cli
from ray_distill.artifacts import LabelSetRef, Verdict
from ray_distill.labels.store.reader import open_label_set
from ray_distill.runtime import campaign
from ray_distill.snapshots.labelled_rows import labelled_rows
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from tests.labs import campaign as lab

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

TRAFFIC, TEST = lab.texts(400, seed=3)[:300], lab.texts(400, seed=3)[280:]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A campaign that was run to its verdict."""

    folder: Path
    result: campaign.CampaignResult

    def command(self, capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
        """Run a command that succeeds; return its result and what it reported."""
        assert cli.main([*arguments, "--json"]) == 0
        found = capfd.readouterr()
        return json.loads(found.out.splitlines()[-1]), found.err


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, embedded_ray: None) -> Judged:
    folder = tmp_path_factory.mktemp("own")
    source = lab.write_rows(folder / "traffic.jsonl", [(text, None) for text, _ in TRAFFIC])
    test = lab.write_rows(folder / "test.jsonl", TEST)
    value = lab.config_of(
        folder,
        source,
        {"model": str(lab.write_teacher(folder / "teacher"))},
        snapshot={
            "source": str(source),
            "test": {"source": str(test), "columns": {"label": "label"}},
            "augment": {"views": 1, "most_entropy": 0.6},
        },
        labels__check={},
        student__losses={"soft": {}},
        gate={"limits": {"accuracy": {"min": 0.4}, "ece": None}},
    )
    return Judged(folder=folder, result=campaign.run(lab.load(folder / "campaign.yaml", value)))


def test_unlabelled_traffic_is_judged_by_a_test_set_of_ones_own(judged: Judged) -> None:
    """Classes are the teacher's, rows that both have teach nothing, and the verdict rests on all labelled rows."""
    result = judged.result
    snapshot = open_snapshot(result.snapshot)
    counts = labelled_rows(snapshot.manifest)
    assert snapshot.classes == lab.CLASSES and snapshot.manifest.own == {"test": 20}
    assert [counts[name].labelled for name in ("train", "validation", "calibration", "test")] == [0, 0, 0, 120]
    assert "baseline_hard_labels" not in result.students
    assert result.report.models["student"].metrics["accuracy"].n == 120
    assert result.decision.verdict is Verdict.PROMOTE
    assert "there is no baseline_hard_labels to beat" in " ".join(result.decision.reasons)


def test_views_of_train_rows_are_labelled_and_the_page_states_how_many_teach(judged: Judged) -> None:
    """Each row of the derived snapshot has labels, once; report and store have the same counts."""
    snapshot = open_snapshot(judged.result.snapshot)
    counts, train = snapshot.manifest.view_counts, snapshot.manifest.splits["train"].rows
    assert counts is not None and train == counts["rows"] + sum(counts["kept"].values()) > 1.5 * counts["rows"]
    assert open_label_set(judged.result.labels).rows == sum(shard.rows for shard in snapshot.shards)
    kept = files.read_json(f"{judged.folder}/out/state/label.json")["result"]["views"]
    assert kept["teach"] + kept["unsure"] == sum(counts["kept"].values()) and kept["unsure"] > 0
    page = files.read_bytes(judged.result.report.url.rpartition("/")[0] + "/report.html").decode()
    assert f"{kept['teach']:,} views of train rows teach the student; {kept['unsure']:,} teach nobody" in page


def test_a_campaign_with_views_resumes_and_its_store_is_sound(
    judged: Judged, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same command finds everything done; the audit reads every byte."""
    result, reported = judged.command(capfd, "run", str(judged.folder / "campaign.yaml"))
    assert LabelSetRef.from_dict(result["labels"]) == judged.result.labels
    for stage in ("snapshot", "label", "train"):
        assert f'"skipped": "{stage}"' in reported
    audited, _ = judged.command(capfd, "audit", judged.result.labels.store)
    assert audited["rows"] == sum(shard.rows for shard in open_snapshot(judged.result.snapshot).shards)


def test_newer_traffic_is_compared_with_rows_not_views(judged: Judged, capfd: pytest.CaptureFixture[str]) -> None:
    """The same traffic again has no drift and costs no label; views are not made of it."""
    source = str(judged.folder / "traffic.jsonl")
    found, _ = judged.command(capfd, "relabel", str(judged.folder / "campaign.yaml"), "--source", source)
    assert (found["rows_total"], found["rows_labelled"], found["recommendation"]) == (300, 0, "nothing")
