"""Store the metrics of every step of a run, as files that survive a kill.

    <output>/curves/<run>/<first step>.jsonl

The first rank writes the files during training; the driver and the report read them. A file grows until the next
checkpoint and is complete before that checkpoint is. A resumed run therefore finds the metrics of all steps before its
checkpoint. It drops the metrics of later steps and takes these steps again, so the files have every step once.
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ray_distill.errors import StorageError
from ray_distill.storage import files

log = logging.getLogger(__name__)

#: Seconds between two writes of a growing file, which is the delay of a reader.
WRITE_SECONDS = 2.0
#: Most steps of a file, because each write replaces the whole file.
MOST_STEPS = 1000
#: Points of a curve that a tracker gets by default.
CURVE_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Metrics of one step of an arm."""

    arm: str
    """The arm, with its learning rate if there are several."""
    step: int
    steps: int
    """Last step of the run, as far as it is known: a run that ends early has it in its last line alone."""
    values: Mapping[str, float]


class Points:
    """Select the points of curves that are recorded elsewhere; the files have all of them."""

    def __init__(self, every: int | None) -> None:
        """Select each metric once in ``every`` steps; None = about `CURVE_POINTS` times a curve."""
        self._every, self._recorded = every, dict[tuple[str, str], int]()

    def of(self, one: StepMetrics) -> dict[str, float]:
        """Return the metrics of a step that are due.

        A metric is due at its first step of each interval, however rarely it is measured, and at the last step.
        """
        interval = (one.step - 1) // (self._every or math.ceil(one.steps / CURVE_POINTS))
        last = one.step == one.steps
        due = {
            name: value
            for name, value in one.values.items()
            if last or self._recorded.get((one.arm, name), -1) < interval
        }
        self._recorded |= {(one.arm, name): interval for name in due}
        return due


def curve_url(output: str, arm: str) -> str:
    """Return the folder of an arm's curve; ``output`` is the folder of the students."""
    return files.join(output, "curves", arm)


class CurveWriter:
    """Writes the curve of one run, on the first rank; training waits for it only at checkpoints."""

    def __init__(self, url: str, *, after: int, steps: int) -> None:
        """Continue a curve after a step; the metrics of later steps from an earlier run are dropped.

        Args:
            url: folder of the curve.
            after: the step.
            steps: steps of the whole run.

        Raises:
            StorageError: the earlier files cannot be read or changed.
        """
        self._url, self._lines, self._steps = url, list[str](), steps
        self._first = after + 1
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="curve")
        self._writing: Future[None] | None = None
        self._written_at = time.monotonic()
        _cut(url, after)

    def add(self, step: int, values: Mapping[str, float], *, last: bool = False) -> None:
        """Add a step's metrics; ``last`` is whether the run ends with it.

        They are written within `WRITE_SECONDS`, if the storage is fast enough.
        """
        self._lines.append(json.dumps({"step": step, "steps": step if last else self._steps, "values": values}))
        if len(self._lines) >= MOST_STEPS:
            self.complete()
        elif time.monotonic() - self._written_at >= WRITE_SECONDS and (self._writing is None or self._writing.done()):
            self._await()
            self._written_at = time.monotonic()
            self._writing = self._thread.submit(files.write_bytes, self._file, _bytes(self._lines))

    def complete(self) -> None:
        """Wait until all steps are written, and begin a new file with the next step.

        Raises:
            StorageError: the file cannot be written.
        """
        self._await()
        if self._lines:
            files.write_bytes(self._file, _bytes(self._lines))
            self._first += len(self._lines)
            self._lines, self._written_at = [], time.monotonic()

    def close(self) -> None:
        """End the thread; steps since `complete` may be lost."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    @property
    def _file(self) -> str:
        return files.join(self._url, f"{self._first:09d}.jsonl")

    def _await(self) -> None:
        """Wait for the write under way.

        After a failed write, the next one writes the same file again.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except StorageError as error:
            log.warning("a part of the curve is not written yet: %s", error)


def read_curve(url: str) -> dict[int, dict[str, float]]:
    """Return the metrics of every step of a curve, by step; empty if there is no curve."""
    found = _steps(url, files.read_many([files.join(url, name) for name in _names(url)]))
    return {one.step: dict(one.values) for one in found}


class CurveReader:
    """Reads the curves of a training job while they grow; returns each step of each run once."""

    def __init__(self, output: str, *, known: Mapping[str, int] | None = None) -> None:
        """Read curves below ``output``; ``known`` has the last step already read, by run."""
        self._url, self._known = files.join(output, "curves"), dict(known or {})

    @property
    def known(self) -> dict[str, int]:
        """The last step returned, by run."""
        return dict(self._known)

    def new(self) -> list[StepMetrics]:
        """Return the steps written since the last call, in order.

        Raises:
            StorageError: a file cannot be read; nothing is skipped, the next call reads it.
        """
        starts: dict[str, list[int]] = {}
        for item in files.list_files(self._url):
            arm, _, name = item.name.rpartition("/")
            starts.setdefault(arm, []).append(int(name.removesuffix(".jsonl")))
        found = [one for arm, firsts in starts.items() for one in self._new(arm, sorted(firsts))]
        self._known |= {one.arm: one.step for one in found}
        return found

    def _new(self, arm: str, firsts: list[int]) -> list[StepMetrics]:
        """Read the files that may have later steps than the last known one."""
        known = self._known.get(arm, 0)
        begun = [first for first in firsts if first <= known + 1]
        unread = [*begun[-1:], *firsts[len(begun) :]]
        data = files.read_many([files.join(self._url, arm, f"{first:09d}.jsonl") for first in unread])
        return [one for one in _steps(arm, data) if one.step > known]


def _cut(url: str, after: int) -> None:
    """Drop the later steps of a curve.

    The last file is changed first, so that the remaining steps never have a gap.
    """
    for name in reversed(_names(url)):
        one = files.join(url, name)
        if int(name.removesuffix(".jsonl")) > after:
            files.delete(one)
            continue
        data = files.read_bytes(one)
        kept = _bytes([line for line in _lines(data) if json.loads(line)["step"] <= after])
        if kept != data:
            files.write_bytes(one, kept)
        return


def _names(url: str) -> list[str]:
    """Return the names of a curve's files, in order.

    Subfolders contain the curves of other runs.
    """
    return [item.name for item in files.list_files(url) if "/" not in item.name]


def _steps(arm: str, data: list[bytes]) -> Iterator[StepMetrics]:
    for part in data:
        for line in _lines(part):
            yield StepMetrics(arm=arm, **json.loads(line))


def _lines(data: bytes) -> list[str]:
    """Return the complete lines of a file.

    On storage without atomic writes, the last line may be truncated.
    """
    return data.decode(errors="replace").split("\n")[:-1]


def _bytes(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
