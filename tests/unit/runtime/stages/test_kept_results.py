"""Results that a later command uses again: equal to what was kept, and only for equal inputs."""

import math
from pathlib import Path

import numpy as np
import pytest

from ray_distill.artifacts import Estimate, LabelSetRef, SnapshotRef, StudentRef
from ray_distill.config import Campaign, parse_config
from ray_distill.errors import DamagedFile
from ray_distill.evaluation.measures.teacher_trust import TrustSample, compare_trust
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.model.work_units import WorkUnit
from ray_distill.runtime.labelling.calibrate_store import Found
from ray_distill.runtime.labelling.teacher_quality import TeacherCheck
from ray_distill.runtime.stages.kept_results import (
    check_key,
    keep_calibration,
    keep_check,
    keep_trust,
    kept_calibration,
    kept_check,
    kept_trust,
    trust_key,
)
from ray_distill.testing.labels import fake_manifest

SNAPSHOT, OTHER = (SnapshotRef(url="u", fingerprint=name) for name in ("one", "other"))

LABELS = LabelSetRef(store="s", fingerprint="f", snapshot=SNAPSHOT, log_length=1, log_digest="d")


@pytest.fixture
def config(tmp_path: Path) -> Campaign:
    return _config(tmp_path)


def _config(folder: Path, **labels: object) -> Campaign:
    return parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "output": str(folder),
            "snapshot": {"source": "x"},
            "labels": {"teacher": {"model": "m:f"}, **labels},
        }
    )


def test_a_calibration_is_kept_for_its_store_and_snapshot(config: Campaign) -> None:
    """Arrays to the bit, measurements and rows a unit; not for another snapshot or another form of the store."""
    manifest = fake_manifest(estimator="topk")
    assert kept_calibration(config, SNAPSHOT, manifest) is None
    fits = {"ids": np.arange(5, dtype=np.int32), "hidden.1.mean": np.array([0.1, 1e-9], np.float32)}
    found = Found(fits=fits, measured={"labels": {"nats": {"1": 1e-9}}, "rows": 3}, range_rows=7)
    keep_calibration(config, SNAPSHOT, manifest, found)
    again = kept_calibration(config, SNAPSHOT, manifest)
    assert again is not None and (again.measured, again.range_rows) == (found.measured, 7)
    assert all(np.array_equal(again.fits[name], array) for name, array in fits.items())
    assert kept_calibration(config, OTHER, manifest) is None
    assert kept_calibration(config, SNAPSHOT, fake_manifest(estimator="topk", k=3)) is None


def test_a_check_is_kept_for_its_teacher_and_not_for_its_limits(config: Campaign, tmp_path: Path) -> None:
    """A changed floor judges the same metrics again; another teacher, snapshot or batch is measured again."""
    key = check_key(config, SNAPSHOT, "teacher", None)
    assert kept_check(config, key) is None
    found = TeacherCheck(
        teacher={"accuracy": Estimate(value=0.5, low=0.4, high=0.6, n=9), "ece": Estimate(value=math.nan)},
        trivial={"accuracy": 0.25},
    )
    keep_check(config, key, found)
    again = kept_check(config, key)
    assert again is not None and again.teacher["accuracy"] == found.teacher["accuracy"]
    assert math.isnan(again.teacher["ece"].value) and again.trivial == {"accuracy": 0.25} and again.champion == {}
    other_floor = _config(tmp_path, check={"limits": {"accuracy": {"min": 0.9}}})
    assert check_key(other_floor, SNAPSHOT, "teacher", None) == key
    assert len({str(one) for one in (key, *_others(config, tmp_path))}) == 4


def test_a_result_of_another_key_is_refused_by_name(config: Campaign) -> None:
    """Two results in each other's place are whole, and of other teachers."""
    for teacher, accuracy in (("one", 0.5), ("two", 0.9)):
        estimates = {"accuracy": Estimate(value=accuracy)}
        keep_check(config, check_key(config, SNAPSHOT, teacher, None), TeacherCheck(teacher=estimates))
    one, two = sorted(Path(config.output_url).glob("kept/checks/*.json"))
    one.write_bytes(two.read_bytes())
    key = next(
        found
        for found in (check_key(config, SNAPSHOT, teacher, None) for teacher in ("one", "two"))
        if fingerprint(found) == one.stem
    )
    with pytest.raises(DamagedFile, match=r"is not the result that is kept there; delete it, and it is made again"):
        kept_check(config, key)


def test_a_check_on_newer_traffic_is_kept_for_its_rows_and_its_limits(config: Campaign) -> None:
    """Its verdict is that of the limits; other rows, another reference or another champion are checked again."""
    units = [WorkUnit(unit_id=name, shard="s", start=0, stop=2, rows=(0, 1)) for name in ("a", "b")]
    champion = StudentRef(url="u", fingerprint="f", arm="student", labels=LABELS)
    key = trust_key(config, SNAPSHOT, OTHER, units=units, teacher="teacher", champion=None)
    assert kept_trust(config, key) is None
    sample = TrustSample(rows=30, quality={}, confidence=Estimate(value=0.5), disagreement=None)
    found = compare_trust(sample, sample, config.drift)
    keep_trust(config, key, found)
    again = kept_trust(config, key)
    assert again is not None and again.findings[0].sentence == found.findings[0].sentence
    assert math.isnan(again.findings[0].change.low) and not again.fails
    stricter = config.model_copy(update={"drift": config.drift.model_copy(update={"max_confidence_loss": 0.2})})
    others = [
        trust_key(config, OTHER, OTHER, units=units, teacher="teacher", champion=None),
        trust_key(config, SNAPSHOT, OTHER, units=units[:1], teacher="teacher", champion=None),
        trust_key(config, SNAPSHOT, OTHER, units=units, teacher="another", champion=None),
        trust_key(config, SNAPSHOT, OTHER, units=units, teacher="teacher", champion=champion),
        trust_key(stricter, SNAPSHOT, OTHER, units=units, teacher="teacher", champion=None),
    ]
    assert all(kept_trust(config, other) is None for other in others)


def _others(config: Campaign, folder: Path) -> list[dict[str, object]]:
    batch = _config(folder, resources={"batch": 8})
    return [
        check_key(config, OTHER, "teacher", None),
        check_key(config, SNAPSHOT, "another", None),
        check_key(batch, SNAPSHOT, "teacher", None),
    ]
