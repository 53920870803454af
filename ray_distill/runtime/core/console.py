"""Report events and progress on stderr, and format tables; stdout is for results only.

On a terminal, events are sentences, and progress is a bar with its rate and the time left; elsewhere (a log collector,
CI) each event or progress report is one JSON object on a line.
"""

import io
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ray_distill.redact import redact

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

#: Minimum seconds between two progress lines of a log.
INTERVAL_LOG = 10.0


def report(sentence: str, **facts: Any) -> None:
    """Report one event without secrets: a sentence for people, facts for machines."""
    sentence = redact(sentence)
    facts = {name: redact(value) if isinstance(value, str) else value for name, value in facts.items()}
    if sys.stderr.isatty():
        sys.stderr.write(f"{sentence}\n")
    else:
        sys.stderr.write(json.dumps({"time": round(time.time(), 3), "event": sentence, **facts}) + "\n")
    sys.stderr.flush()


class Progress:
    """Report a running count with rate and time left; on exit, end the bar of a terminal."""

    def __init__(self, task: str, total: int, unit: str = "rows"):
        self.task, self.total, self.unit = task, total, unit
        self.done = 0
        self._start = self._last = time.monotonic()
        self._bar = _bar(task, total, unit) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, count: int) -> None:
        """Add ``count`` and report; a log gets a line every `INTERVAL_LOG` seconds, and a last one."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=count, rate=self._rate())
            return
        now = time.monotonic()
        if self.done >= self.total or now - self._last >= INTERVAL_LOG:
            self._last = now
            self._log()

    def _rate(self) -> float:
        return self.done / max(time.monotonic() - self._start, 1e-9)

    def _log(self) -> None:
        rate = self._rate()
        left = (self.total - self.done) / max(rate, 1e-9)
        report(f"{self.task} {self.done}/{self.total} {self.unit}", rate=round(rate, 1), seconds_left=round(left, 1))


def _bar(task: str, total: int, unit: str) -> "Bar":
    """Return a bar on stderr; other output on stderr appears above the bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.percentage:.0f} %"),
        TextColumn("{task.fields[rate]:,.0f} " + unit + "/s"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(file=sys.stderr),
        redirect_stdout=False,
    )
    bar.add_task(task, total=total, rate=0.0)
    return bar


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Format rows as text, with rules on a terminal; only the first column is left-aligned."""
    return _ruled(rows) if sys.stdout.isatty() else _aligned(rows)


def _ruled(rows: Sequence[Mapping[str, str]]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    ruled = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for at, name in enumerate(rows[0]):
        ruled.add_column(Text(name), justify="left" if at == 0 else "right")
    for row in rows:
        ruled.add_row(*(Text(cell) for cell in row.values()))
    buffer = io.StringIO()
    Console(file=buffer, force_terminal=True, width=shutil.get_terminal_size().columns).print(ruled)
    return buffer.getvalue().rstrip("\n")


def _aligned(rows: Sequence[Mapping[str, str]]) -> str:
    names = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}

    def line(cells: Mapping[str, str]) -> str:
        padded = [
            cells[name].ljust(widths[name]) if at == 0 else cells[name].rjust(widths[name])
            for at, name in enumerate(names)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line({name: name for name in names}), *(line(row) for row in rows)])
