"""Curves as files: what a run that goes on finds, and what is read while they grow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_distill.errors import StorageError
from ray_distill.storage import files
from ray_distill.students.telemetry import curves
from ray_distill.students.telemetry.curves import CurveReader, CurveWriter, Points, StepMetrics, curve_url, read_curve
from ray_distill.testing.crashfs import Crash, crashing_disk, crashing_remote, cut_points, points

STEPS, EVERY = 9, 3


def _values(step: int, run: int = 0) -> dict[str, float]:
    return {"loss": float(step), "run": float(run)}


def _write(url: str, steps: range, run: int = 0, saved: Callable[[int], object] = lambda step: None) -> None:
    """Write steps as a run does that goes on before the first, with a checkpoint every three steps."""
    writer = CurveWriter(url, after=steps.start - 1, steps=9)
    for step in steps:
        writer.add(step, _values(step, run))
        if step % EVERY == 0:
            writer.complete()
            saved(step)
    writer.complete()
    writer.close()


def _steps(url: str) -> dict[int, float]:
    return {step: values["run"] for step, values in read_curve(url).items()}


def test_a_run_that_goes_on_replaces_what_it_repeats(tmp_path: Path) -> None:
    """From steps where a checkpoint was and from others; the steps before stay, later ones are dropped at once."""
    url = str(tmp_path)
    _write(url, range(1, 10))
    for after, run in ((6, 1), (4, 2), (0, 3)):
        CurveWriter(url, after=after, steps=9).close()
        assert sorted(_steps(url)) == list(range(1, after + 1))
        _write(url, range(after + 1, 10), run)
        assert sorted(_steps(url)) == list(range(1, 10))
        assert {step for step, found in _steps(url).items() if found == run} == set(range(after + 1, 10))


@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_run_that_dies_anywhere_leaves_a_curve_that_another_completes(tmp_path: Path, place: str) -> None:
    """At every operation of storage, in the first run and in the one that goes on: every step once in the end."""

    def two_runs(url: str) -> None:
        """A run whose rank is lost after eight steps, and one that goes on from its checkpoint after six."""
        _write(url, range(1, 9), 0, done.append)
        _write(url, range(7, 10), 1, done.append)

    crashing: Any = crashing_disk if place == "local" else crashing_remote
    done = list[int]()
    prefix = "" if place == "local" else "crash://"
    count = points(crashing, lambda: two_runs(f"{prefix}{tmp_path}/count"))
    assert count >= 6
    for at, way in cut_points(count):
        url, done = f"{prefix}{tmp_path}/{at}-{way}", []
        with pytest.raises(Crash), crashing(at, way):
            two_runs(url)
        step = max(done, default=0)
        _write(url, range(step + 1, 10), 2)
        assert sorted(_steps(url)) == list(range(1, 10)), (at, way)
        assert {one for one, run in _steps(url).items() if run == 2} == set(range(step + 1, 10)), (at, way)


def test_a_file_has_the_steps_between_two_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than so many, since it is written whole each time."""
    folder = str(tmp_path)
    _write(folder, range(1, 9))
    assert [item.name for item in files.list_files(folder)] == [f"{first:09d}.jsonl" for first in (1, 4, 7)]
    monkeypatch.setattr(curves, "MOST_STEPS", 2)
    _write(folder, range(4, 9))
    assert [item.name for item in files.list_files(folder)] == [f"{first:09d}.jsonl" for first in (1, 4, 6, 7)]
    assert sorted(_steps(folder)) == list(range(1, 9))


def test_steps_are_readable_before_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file grows while training goes on, and what is read of it has no hole."""
    monkeypatch.setattr(curves, "WRITE_SECONDS", 0.0)
    writer = CurveWriter(curve_url(str(tmp_path), "student"), after=0, steps=9)
    reader = CurveReader(str(tmp_path))
    found, step = list[StepMetrics](), 0
    while not found:
        step += 1
        writer.add(step, _values(step))
        found += reader.new()
    assert step < curves.MOST_STEPS
    writer.complete()
    writer.close()
    found += reader.new()
    assert [one.step for one in found] == list(range(1, step + 1))


def test_a_write_that_fails_is_repeated_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only at a checkpoint must the storage work."""
    monkeypatch.setattr(curves, "WRITE_SECONDS", 0.0)
    write, broken = files.write_bytes, True

    def failing(url: str, data: bytes) -> None:
        if broken:
            raise StorageError("away")
        write(url, data)

    monkeypatch.setattr(files, "write_bytes", failing)
    writer = CurveWriter(str(tmp_path), after=0, steps=9)
    for step in range(1, 5):
        writer.add(step, _values(step))
    with pytest.raises(StorageError, match="away"):
        writer.complete()
    broken = False
    writer.complete()
    writer.close()
    assert sorted(_steps(str(tmp_path))) == [1, 2, 3, 4]


def test_each_step_is_returned_once_whatever_runs_again(tmp_path: Path) -> None:
    """Steps that a run repeats are not returned again, also to a reader that goes on from an earlier one."""
    output = str(tmp_path)
    student, rate = curve_url(output, "student"), curve_url(output, "baseline/rate-0.01")
    reader = CurveReader(output)
    assert reader.new() == []
    _write(student, range(1, 7))
    _write(rate, range(1, 4))
    assert [(one.arm, one.step) for one in reader.new()] == [
        *(("baseline/rate-0.01", step) for step in (1, 2, 3)),
        *(("student", step) for step in range(1, 7)),
    ]
    _write(student, range(4, 10), run=1)
    reader = CurveReader(output, known=json.loads(json.dumps(reader.known)))
    assert [(one.step, one.values["run"]) for one in reader.new()] == [(7, 1), (8, 1), (9, 1)]
    assert reader.new() == []


def test_what_cannot_be_read_now_is_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that a run has just dropped: nothing is taken for known."""
    _write(curve_url(str(tmp_path), "student"), range(1, 7))
    _write(curve_url(str(tmp_path), "teacher"), range(1, 4))
    reader, read = CurveReader(str(tmp_path)), files.read_many

    def failing(urls: list[str]) -> list[bytes]:
        if "teacher" in urls[0]:
            raise StorageError("gone")
        return read(urls)

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="gone"):
        patch.setattr(files, "read_many", failing)
        reader.new()
    assert len(reader.new()) == 9


def _points(every: int | None, steps: int, validations: int) -> dict[str, list[int]]:
    """The steps at which a tracker gets each metric of a curve."""
    points, found = Points(every), dict[str, list[int]]()
    for step in range(1, steps + 1):
        values = {"loss": 1.0, **({"validation_nll": 1.0} if step % validations == 0 else {})}
        for name in points.of(StepMetrics(arm="student", step=step, steps=steps, values=values)):
            found.setdefault(name, []).append(step)
    return found


def test_a_tracker_gets_about_200_points_of_a_curve(tmp_path: Path) -> None:
    """The first step and the last, and evenly in between; short curves whole; rare metrics at each of their steps."""
    found = _points(None, 10_007, 500)
    assert len(found["loss"]) == 198 and found["loss"][:3] == [1, 52, 103] and found["loss"][-1] == 10_007
    assert found["validation_nll"] == list(range(500, 10_001, 500))
    assert _points(None, 200, 7)["loss"] == list(range(1, 201))
    assert _points(30, 100, 7)["loss"] == [1, 31, 61, 91, 100]
    assert _points(1, 300, 7)["loss"] == list(range(1, 301))


def test_the_last_step_of_a_run_that_ends_early_is_a_point(tmp_path: Path) -> None:
    """Only its last line knows that it is the last; the arms of a job are thinned apart."""
    for arm in ("student", "baseline"):
        writer = CurveWriter(curve_url(str(tmp_path), arm), after=0, steps=4000)
        for step in range(1, 48):
            writer.add(step, _values(step), last=step == 47)
        writer.complete()
        writer.close()
    points, found = Points(None), CurveReader(str(tmp_path)).new()
    assert len(found) == 94
    assert [(one.arm, one.step) for one in found if points.of(one)] == [
        (arm, step) for arm in ("baseline", "student") for step in (1, 21, 41, 47)
    ]
