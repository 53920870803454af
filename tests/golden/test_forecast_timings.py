"""Steps that `plan` times: of every arm, and of an evaluation, on the labels of a store, in one process."""

from pathlib import Path

from ray_distill.config import Campaign, parse_config
from ray_distill.labels.store.label_store import open_store
from ray_distill.models.io.load import load_model
from ray_distill.runtime.forecast.forecast import choose_pieces
from ray_distill.runtime.forecast.probe import Piece
from ray_distill.runtime.forecast.time_stages import time_evaluation, time_training
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.students.arms import ARMS
from ray_distill.testing.labels import fake_manifest, label_all
from ray_distill.testing.models import write_tiny_text_model
from tests.golden.test_training_run import CLASSES, freeze


def _config(folder: Path) -> Campaign:
    return parse_config(
        {
            "campaign": "tiny",
            "task": "text_classification",
            "snapshot": {"source": "unused"},
            "labels": {"teacher": {"model": str(folder / "teacher")}},
            "student": {
                "model": {"from": "teacher_layers", "keep": 1},
                "losses": {"soft": {"temperature": 2}, "hidden": {}},
                "training": {"global_batch": 32, "micro_batch": 8, "workers": 2},
            },
            "evaluation": {"bootstrap": 100},
            "plan": {"seconds": 4},
        }
    )


def test_every_arm_and_both_models_are_timed(tmp_path: Path) -> None:
    """Ten steps an arm on the probed rows alone, though others are not labelled; teacher and student in four parts."""
    write_tiny_text_model(tmp_path / "teacher", CLASSES, seed=1)
    snapshot, config = open_snapshot(freeze(tmp_path, "traffic", 160, seed=1)), _config(tmp_path)
    label_all(str(tmp_path / "store"), fake_manifest(layers=(1, 2)), snapshot)
    units = open_store(str(tmp_path / "store")).coverage(snapshot)
    assert not units.units
    every = [Piece(shard=one.name, start=0, stop=one.rows, rows=tuple(range(one.rows))) for one in snapshot.shards]
    pieces = choose_pieces(every, 64, seed=0)
    found = time_training(config, snapshot.ref, str(tmp_path / "store"), pieces, arms=tuple(ARMS))
    assert [arm.arm for arm in found.timed.arms] == list(ARMS)
    for arm in found.timed.arms:
        assert 1 <= len(arm.step_seconds) <= 10 and min(arm.step_seconds) > 0 and arm.row_seconds > 0
    student = load_model(config.labels.teacher, task=config.task)
    assert 0 < found.student_bytes < 4 * sum(p.numel() for p in student.module.parameters())
    timed = time_evaluation(config, snapshot.ref, None)
    assert {name: len(seconds) for name, seconds in timed.row_seconds.items()} == {"teacher": 4, "student": 4}
    assert timed.measure_seconds > 0 and timed.request_seconds > 0
    assert timed.seconds > sum(timed.load_seconds.values())
