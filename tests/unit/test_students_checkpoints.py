"""Checkpoints are complete and verified, or they are not there."""

import json
import logging
from pathlib import Path

import pytest

from ray_distill.errors import TrainingError
from ray_distill.students.checkpoints import check_plan, fetch_checkpoint, find_checkpoint, save_checkpoint
from ray_distill.students.ranks import Ranks

ALONE = Ranks(rank=0, world=1)


def save(folder: Path, step: int, **changes: object) -> Path:
    """Save a checkpoint whose one file spells its step."""
    def write(local: Path) -> None:
        (local / "engine").mkdir()
        (local / "engine" / "state").write_text(f"step {step}")

    values: dict[str, object] = {"plan": {"labels": "a"}, "state": {"cursor": {"step": step}}, **changes}
    return Path(save_checkpoint(str(folder), ALONE, write, step=step, **values))  # type: ignore[arg-type]


def test_the_newest_is_found_and_fetched(tmp_path: Path) -> None:
    """What was written comes back, with its state, and files lie under their rank's name."""
    save(tmp_path / "c", 5)
    url = save(tmp_path / "c", 10)
    found = find_checkpoint(str(tmp_path / "c"), ALONE)
    assert found is not None and found.step == 10 and found.state == {"cursor": {"step": 10}}
    fetch_checkpoint(found, tmp_path / "local")
    assert (tmp_path / "local" / "engine" / "state").read_text() == "step 10"
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
def test_a_damaged_one_is_skipped_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
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
    with pytest.raises(TrainingError, match="engine/state is damaged"):
        fetch_checkpoint(found, tmp_path / "local")


def test_the_last_two_and_the_resumed_one_stay(tmp_path: Path) -> None:
    """Older ones go, leftovers of crashes too, but never the one being resumed."""
    resumed = save(tmp_path, 1)
    (tmp_path / "00000002-dead" / "rank-0").mkdir(parents=True)
    (tmp_path / "00000002-dead" / "rank-0" / "half").write_text("")
    for step in (3, 4, 5):
        save(tmp_path, step, protect=[str(resumed)])
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir() if any(path.rglob("*.json"))) == [
        "00000001", "00000004", "00000005"]
    assert not (tmp_path / "00000002-dead" / "rank-0" / "half").exists()


def test_a_future_format_is_not_guessed_at(tmp_path: Path) -> None:
    """A marker of another version is refused by name."""
    url = save(tmp_path, 5)
    marker = json.loads((url / "marker.json").read_text())
    (url / "marker.json").write_text(json.dumps({**marker, "format": 99}))
    with pytest.raises(TrainingError, match="format 99 is not 2"):
        find_checkpoint(str(tmp_path), ALONE)


def test_another_plan_names_both_sides() -> None:
    """Other labels, another world size: what was saved and what is asked for."""
    check_plan({"labels": "a", "world": 2, "more": 1}, {"labels": "a", "world": 2}, "here")
    with pytest.raises(TrainingError, match="here was made with labels a, this run asks for labels b"):
        check_plan({"labels": "a"}, {"labels": "b"}, "here")
    with pytest.raises(TrainingError, match="world unrecorded, this run asks for world 2"):
        check_plan({}, {"world": 2}, "here")
