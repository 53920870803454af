"""A process that dies while it saves a checkpoint, or removes an old one, leaves a whole one to resume from."""

from pathlib import Path

import pytest

from ray_distill.config import CheckpointPolicy
from ray_distill.students.checkpoints.async_writer import CheckpointWriter
from ray_distill.students.checkpoints.store import fetched, find_checkpoint
from ray_distill.students.process_group import Ranks
from ray_distill.testing.crashfs import Crash, crashing_remote, cut_points, points

ALONE = Ranks(rank=0, world=1)


def save(url: str, step: int) -> None:
    """Save a checkpoint of two files that spell its step."""

    def write(local: Path) -> None:
        (local / "engine").mkdir()
        for name in ("one", "two"):
            (local / "engine" / name).write_text(f"{name} of step {step}")

    writer = CheckpointWriter(url, ALONE, CheckpointPolicy(), plan={})
    try:
        writer.start(write, step=step, state={"step": step})
        writer.finish()
    finally:
        writer.close()


def check(url: str, steps: tuple[int, ...]) -> None:
    """A whole checkpoint of one of these steps is found, with every file its own."""
    found = find_checkpoint(url, ALONE)
    assert found is not None and found.step in steps and found.state == {"step": found.step}
    with fetched(found, ALONE) as local:
        for name in ("one", "two"):
            assert (local / "engine" / name).read_text() == f"{name} of step {found.step}"


def test_upload_and_deletion_cut_before_in_and_after_each_operation(tmp_path: Path) -> None:
    """Step 3 is saved, which removes step 1: die anywhere, and step 2 or 3 is found; the next save is whole."""

    def prepared(name: str) -> str:
        url = f"crash://{tmp_path}/{name}"
        for step in (1, 2):
            save(url, step)
        return url

    url = prepared("count")
    count = points(crashing_remote, lambda: save(url, 3))
    assert count >= 7, "two files, each read back, the marker, and two deletions"
    for at, way in cut_points(count):
        url = prepared(f"{at}-{way}")
        with crashing_remote(at, way), pytest.raises(Crash):
            save(url, 3)
        check(url, (2, 3))
        save(url, 4)
        check(url, (4,))
