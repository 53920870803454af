"""Events and progress on stderr, and tables, on a terminal and elsewhere."""

import io
import json
import sys

import pytest

from ray_distill.runtime.core import console


def test_a_table_is_aligned() -> None:
    """The first column to the left, the others to the right, no trailing blanks."""
    text = console.table([{"model": "teacher", "n": "1"}, {"model": "it", "n": "1,000"}])
    assert text == "model        n\nteacher      1\nit       1,000"


def test_off_a_terminal_a_line_is_one_json_object_with_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    """stdout stays empty; quotes and line breaks in a sentence do not break the line."""
    console.report('it is "done"\nand well', skipped="label")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    event = json.loads(captured.err)
    assert (event["event"], event["skipped"]) == ('it is "done"\nand well', "label")


def test_progress_tells_the_rate_and_ends_with_the_total(capsys: pytest.CaptureFixture[str]) -> None:
    """Soon after another nothing is said, but the end always is."""
    progress = console.Progress("label", 10)
    progress.add(4)
    assert capsys.readouterr().err == ""
    progress.add(6)
    event = json.loads(capsys.readouterr().err)
    assert event["event"] == "label 10/10 rows"
    assert event["rate"] > 0
    assert event["seconds_left"] == 0


class Terminal(io.StringIO):
    """A stream that passes for a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def test_a_terminal_has_a_bar_with_rate_and_time_left_and_events_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence stands on a line of its own; the last state of the bar stays, and the cursor is shown again."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with console.Progress("label", 10) as progress:
        progress.add(4)
        console.report("half way")
        progress.add(6)
    shown = terminal.getvalue()
    assert "half way\n" in shown
    last = shown[shown.index("half way") :]
    assert "10/10" in last and "100 %" in last and "rows/s" in last and "left" in last
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_an_interrupted_bar_gives_the_terminal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle: stderr is the terminal itself again, and its cursor is shown."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(KeyboardInterrupt), console.Progress("label", 10):
        raise KeyboardInterrupt
    assert sys.stderr is terminal
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")


def test_a_terminal_has_a_ruled_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headings are ruled off, cells are shown as they are, markup or not."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    text = console.table([{"model": "[bold]teacher", "n": "1"}, {"model": "it", "n": "1,000"}])
    assert "─" in text and "[bold]teacher" in text and "1,000" in text
