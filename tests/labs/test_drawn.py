"""Which victims a commit's crash tests kill."""

import pytest

from tests.labs import label_kills, training_kills
from tests.labs.drawn import COMMIT, LABELLING, TRAINING, drawn, main


def test_the_lists_are_those_of_the_laboratories() -> None:
    """Each victim of a laboratory is killed in every run or drawn."""
    for (always, others), known in ((LABELLING, label_kills.VICTIMS), (TRAINING, training_kills.VICTIMS)):
        assert sorted((always, *others)) == sorted(known)


def test_three_commits_in_turn_kill_every_victim(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash modulo the number of victims decides; without a hash, all are killed."""
    found = [drawn(*TRAINING, format(number, "040x")) for number in (12, 13, 14)]
    assert found == [("rank", "node"), ("rank", "notice"), ("rank", "driver")]
    monkeypatch.setenv(COMMIT, "0d")
    assert drawn(*LABELLING) == ("driver", "writer")
    monkeypatch.delenv(COMMIT)
    assert drawn(*LABELLING) == ("driver", "actor", "writer", "node")


def test_what_is_printed_replays_the_draw(capsys: pytest.CaptureFixture[str]) -> None:
    """The line names the victims and the variable with the hash."""
    main("0d")
    assert capsys.readouterr().out.startswith(
        f"killed in labelling: driver, writer; training: rank, notice (again: {COMMIT}=0d "
    )
