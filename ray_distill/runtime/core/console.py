"""What a person at a terminal sees, and what a log collector gets: the same facts, on stderr.

stdout belongs to results. On a terminal a line is a sentence; elsewhere it is one JSON object.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

#: Least seconds between two progress lines.
INTERVAL_TERMINAL, INTERVAL_LOG = 0.5, 10.0


def say(sentence: str, **facts: Any) -> None:
    """Report one event: ``sentence`` for people, ``facts`` beside it for machines."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{sentence}\n")
    else:
        sys.stderr.write(json.dumps({"time": round(time.time(), 3), "event": sentence, **facts}) + "\n")
    sys.stderr.flush()


class Progress:
    """A running count with its rate and the time left."""

    def __init__(self, what: str, total: int, unit: str = "rows"):
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self._start = self._last = time.monotonic()

    def add(self, count: int) -> None:
        """Count ``count`` more as done and report, unless the last report is too recent."""
        self.done += count
        now = time.monotonic()
        interval = INTERVAL_TERMINAL if sys.stderr.isatty() else INTERVAL_LOG
        if self.done >= self.total or now - self._last >= interval:
            self._last = now
            self._report(now - self._start)

    def _report(self, seconds: float) -> None:
        rate = self.done / max(seconds, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        if sys.stderr.isatty():
            share = self.done / max(self.total, 1)
            sys.stderr.write(
                f"\r\x1b[K{self.what} {self.done:,}/{self.total:,} {self.unit} ({share:.0%})  "
                f"{rate:,.0f} {self.unit}/s  {duration(left)} left"
            )
            sys.stderr.write("\n" if self.done >= self.total else "")
            sys.stderr.flush()
        else:
            say(f"{self.what} {self.done}/{self.total} {self.unit}", rate=round(rate, 1), seconds_left=round(left, 1))


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as aligned text columns; the first column left, the others right."""
    names = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}

    def line(cells: Mapping[str, str]) -> str:
        padded = [
            cells[name].ljust(widths[name]) if at == 0 else cells[name].rjust(widths[name])
            for at, name in enumerate(names)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line({name: name for name in names}), *(line(row) for row in rows)])
