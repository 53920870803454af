"""What is told on stderr, and tables."""

import json

import pytest

from ray_distill.runtime.core import console


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_durations_are_said_as_a_person_says_them(seconds: float, said: str) -> None:
    """Rounding never gives 60 of a unit."""
    assert console.duration(seconds) == said


def test_a_table_is_aligned() -> None:
    """The first column to the left, the others to the right, no trailing blanks."""
    text = console.table([{"model": "teacher", "n": "1"}, {"model": "it", "n": "1,000"}])
    assert text == "model        n\nteacher      1\nit       1,000"


def test_off_a_terminal_a_line_is_one_json_object_with_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    """stdout stays empty; quotes and line breaks in a sentence do not break the line."""
    console.say('it is "done"\nand well', skipped="label")
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
