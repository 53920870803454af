"""Checkpoints are complete and verified, or they are not there."""

import json
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from ray_distill.config import CheckpointPolicy
from ray_distill.errors import StorageError, TrainingError
from ray_distill.storage import files
from ray_distill.students.checkpoints import store
from ray_distill.students.checkpoints.async_writer import MAX_FAILED, CheckpointWriter
from ray_distill.students.checkpoints.store import check_plan, fetched, find_checkpoint
from ray_distill.students.process_group import Ranks
from ray_distill.testing.ranks import run_threads

ALONE = Ranks(rank=0, world=1)
KEEP_TWO = CheckpointPolicy()


def written(step: int) -> Callable[[Path], None]:
    """What writes a checkpoint whose one file spells its step."""

    def write(local: Path) -> None:
        (local / "engine").mkdir()
        (local / "engine" / "state").write_text(f"step {step}")

    return write


def save(
    folder: Path,
    step: int,
    policy: CheckpointPolicy = KEEP_TWO,
    protect: Sequence[str] = (),
    loss: float = 1.0,
    accuracy: float = 0.5,
) -> Path:
    """Save a checkpoint whose one file spells its step; what the validation split said is given."""
    state = {"cursor": {"step": step}, "validation": {"value": loss, "metrics": {"validation_accuracy": accuracy}}}
    writer = CheckpointWriter(str(folder), ALONE, policy, plan={"labels": "a"}, protect=protect)
    try:
        writer.start(written(step), step=step, state=state)
        url = writer.finish()
    finally:
        writer.close()
    assert url is not None
    return Path(url)


def steps_in(folder: Path) -> list[int]:
    """Steps of the complete checkpoints."""
    return sorted(int(marker.parent.name.split("-")[0]) for marker in folder.glob("*/marker.json"))


def test_the_newest_is_found_and_fetched(tmp_path: Path) -> None:
    """What was written comes back, with its state, and files lie under their rank's name."""
    save(tmp_path / "c", 5)
    url = save(tmp_path / "c", 10)
    found = find_checkpoint(str(tmp_path / "c"), ALONE)
    assert found is not None and found.step == 10 and found.state["cursor"] == {"step": 10}
    with fetched(found, ALONE) as local:
        assert (local / "engine" / "state").read_text() == "step 10"
    assert not local.exists()
    assert (url / "rank-0" / "engine" / "state").is_file()


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    """A first run has nothing to resume."""
    assert find_checkpoint(str(tmp_path / "none"), ALONE) is None


def test_without_marker_it_does_not_exist(tmp_path: Path) -> None:
    """A crash before the marker leaves the one before as the newest."""
    save(tmp_path, 5)
    (save(tmp_path, 10) / "marker.json").unlink()
    found = find_checkpoint(str(tmp_path), ALONE)
    assert found is not None and found.step == 5


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "marker"])
def test_a_damaged_one_is_skipped_with_a_warning(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is wrong with it, it is named and the one before is used."""
    save(tmp_path, 5)
    url = save(tmp_path, 10)
    target = url / "marker.json" if damage == "marker" else url / "rank-0" / "engine" / "state"
    if damage == "remove":
        target.unlink()
    else:
        target.write_text({"flip": "step 11", "cut": "st", "marker": "{"}[damage])
    with caplog.at_level(logging.WARNING):
        found = find_checkpoint(str(tmp_path), ALONE)
    assert found is not None and found.step == 5
    assert str(url) in caplog.text


def test_only_damaged_ones_is_an_error(tmp_path: Path) -> None:
    """It does not silently start anew."""
    (save(tmp_path, 5) / "rank-0" / "engine" / "state").write_text("x")
    with pytest.raises(TrainingError, match=r"all 1 are damaged.*engine/state is damaged"):
        find_checkpoint(str(tmp_path), ALONE)


def test_damage_after_the_search_is_found_on_download(tmp_path: Path) -> None:
    """Every file is verified again before anything reads it."""
    url = save(tmp_path / "c", 5)
    found = find_checkpoint(str(tmp_path / "c"), ALONE)
    (url / "rank-0" / "engine" / "state").write_text("step 6")
    assert found is not None
    with pytest.raises(TrainingError, match="engine/state is damaged"), fetched(found, ALONE):
        pytest.fail("it was handed out")


def save_on(ranks: Ranks, folder: Path, step: int) -> None:
    """A rank's part of a checkpoint, with a file of its own."""

    def write(local: Path) -> None:
        (local / "engine").mkdir()
        (local / "engine" / f"state-{ranks.rank}").write_text(f"step {step} of rank {ranks.rank}")

    writer = CheckpointWriter(str(folder), ranks, KEEP_TWO, plan={})
    writer.start(write, step=step, state={})
    writer.finish()
    writer.close()


def read_on(ranks: Ranks, folder: Path) -> dict[str, str]:
    """What a rank is given of the newest checkpoint."""
    found = find_checkpoint(str(folder), ranks)
    assert found is not None
    with fetched(found, ranks) as local:
        return {path.name: path.read_text() for path in (local / "engine").iterdir()}


@pytest.mark.parametrize("machines", [1, 3])
def test_ranks_share_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machines: int) -> None:
    """Six ranks verify each file once between them; each machine then downloads it once, and every rank sees all."""
    run_threads(partial(save_on, folder=tmp_path, step=7), 6)
    reads, read = list[str](), files.read_bytes
    monkeypatch.setattr(files, "read_bytes", lambda url: (reads.append(Path(url).name), read(url))[1])
    monkeypatch.setattr(store, "_machine", lambda: int(threading.current_thread().name.split("_")[-1]) % machines)
    every = {f"state-{rank}": f"step 7 of rank {rank}" for rank in range(6)}
    assert run_threads(partial(read_on, folder=tmp_path), 6) == [every] * 6
    assert {name: reads.count(name) for name in every} == dict.fromkeys(every, 1 + machines)
    assert reads.count("marker.json") == 1


@pytest.mark.parametrize("when", ["before", "between"])
def test_damage_that_one_rank_finds_is_told_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Before the search all go to the checkpoint before; after it all end with the same error, and none waits."""
    for step in (3, 7):
        run_threads(partial(save_on, folder=tmp_path, step=step), 4)
    victim = next(tmp_path.glob("00000007-*/rank-2/engine/state-2"))
    if when == "before":
        victim.write_text("other")
        assert [found["state-2"] for found in run_threads(partial(read_on, folder=tmp_path), 4)] == [
            "step 3 of rank 2"
        ] * 4
        return

    def read(ranks: Ranks) -> str:
        found = find_checkpoint(str(tmp_path), ranks)
        ranks.barrier()
        victim.write_text("other")
        assert found is not None
        with pytest.raises(TrainingError, match="state-2 is damaged") as told, fetched(found, ranks):
            pytest.fail("it was handed out")
        return str(told.value)

    assert len(set(run_threads(read, 4))) == 1


def test_the_last_two_and_the_resumed_one_stay(tmp_path: Path) -> None:
    """Older ones go, leftovers of crashes too, but never the one being resumed."""
    resumed = save(tmp_path, 1)
    (tmp_path / "00000002-dead" / "rank-0").mkdir(parents=True)
    (tmp_path / "00000002-dead" / "rank-0" / "half").write_text("")
    for step in (3, 4, 5):
        save(tmp_path, step, protect=[str(resumed)])
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir() if any(path.rglob("*.json"))) == [
        "00000001",
        "00000004",
        "00000005",
    ]
    assert not (tmp_path / "00000002-dead" / "rank-0" / "half").exists()


def test_a_future_format_is_not_guessed_at(tmp_path: Path) -> None:
    """A marker of another version is refused by name."""
    url = save(tmp_path, 5)
    marker = json.loads((url / "marker.json").read_text())
    (url / "marker.json").write_text(json.dumps({**marker, "format": 99}))
    with pytest.raises(TrainingError, match="format 99, this release reads 2"):
        find_checkpoint(str(tmp_path), ALONE)


def test_another_plan_names_both_sides() -> None:
    """Other labels, a setting that only one side has, one in a section: what was saved and what is asked for."""
    with pytest.raises(TrainingError, match="with training.epochs 1, this run has training.epochs 2"):
        check_plan(
            {"training": {"clip": 1, "epochs": 1}}, {"training": {"clip": 1, "epochs": 2}}, "here", folder="work/run-0"
        )
    check_plan({"labels": "a", "rates": [1, 2]}, {"labels": "a", "rates": (1, 2)}, "here", folder="work/run-0")
    with pytest.raises(TrainingError, match="here was made with labels a, this run has labels b"):
        check_plan({"labels": "a"}, {"labels": "b"}, "here", folder="work/run-0")
    with pytest.raises(TrainingError, match="patience unrecorded, this run has patience 2"):
        check_plan({}, {"patience": 2}, "here", folder="work/run-0")
    with pytest.raises(TrainingError, match="patience 2, this run has patience unset"):
        check_plan({"patience": 2}, {}, "here", folder="work/run-0")


def test_the_best_stay_beside_the_newest(tmp_path: Path) -> None:
    """By the loss that arms are judged by."""
    seen = {1: (0.9, 0.1), 2: (0.2, 0.2), 3: (0.8, 0.9), 4: (0.7, 0.3), 5: (0.6, 0.4)}
    for step, (loss, accuracy) in seen.items():
        save(tmp_path, step, CheckpointPolicy(last=1, best=1), loss=loss, accuracy=accuracy)
    assert steps_in(tmp_path) == [2, 5]


def test_training_goes_on_while_a_checkpoint_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is complete when its rank has told so, and the next one waits for it."""
    let, write = threading.Event(), files.write_bytes

    def slowly(url: str, data: bytes) -> None:
        let.wait(30)
        write(url, data)

    monkeypatch.setattr(files, "write_bytes", slowly)
    writer = CheckpointWriter(str(tmp_path), ALONE, KEEP_TWO, plan={})
    assert writer.start(written(1), step=1, state={}) is None
    assert writer.under_way and not writer.idle
    assert find_checkpoint(str(tmp_path), ALONE) is None
    let.set()
    first = writer.start(written(2), step=2, state={})
    assert first is not None and Path(first).name.startswith("00000001-")
    assert steps_in(tmp_path) == [1]
    second = writer.finish()
    assert second is not None and not writer.under_way and steps_in(tmp_path) == [1, 2]
    writer.close()


def test_one_failed_upload_is_told_of_and_two_in_a_row_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that is away for a while costs a checkpoint; one that stays away would leave the run unprotected."""
    write, broken = files.write_bytes, [True, False, True, True]

    def fails(url: str, data: bytes) -> None:
        if broken.pop(0):
            raise StorageError(f"{url}: no space left")
        write(url, data)

    monkeypatch.setattr(files, "write_bytes", fails)
    writer = CheckpointWriter(str(tmp_path), ALONE, KEEP_TWO, plan={})
    urls = []
    for step in (1, 2, 3):
        writer.start(written(step), step=step, state={})
        urls.append(writer.finish())
    assert [url is None for url in urls] == [True, False, True]
    assert "after step 1 could not be saved" in caplog.text and "no space left" in caplog.text
    writer.start(written(4), step=4, state={})
    with pytest.raises(StorageError, match="no space left"):
        writer.finish()
    writer.close()
    assert steps_in(tmp_path) == [2]


def test_a_file_that_comes_back_otherwise_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is read back before the marker is written."""
    monkeypatch.setattr(
        files,
        "write_bytes",
        lambda url, data: (Path(url).parent.mkdir(parents=True, exist_ok=True), Path(url).write_bytes(data[:-1])),
    )
    writer = CheckpointWriter(str(tmp_path), ALONE, KEEP_TWO, plan={})
    for _ in range(MAX_FAILED - 1):
        writer.start(written(1), step=1, state={})
        assert writer.finish() is None
    writer.start(written(1), step=1, state={})
    with pytest.raises(StorageError, match="does not store the bytes that it receives"):
        writer.finish()
    writer.close()
    assert steps_in(tmp_path) == []
