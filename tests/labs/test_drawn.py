"""What a commit's tests draw: victims, and forms."""

import pytest

from tests.labs import label_kills, training_kills
from tests.labs.drawn import COMMIT, LABELLING, TRAINING, main, one_of, victims


def test_the_lists_are_those_of_the_laboratories() -> None:
    """Each victim of a laboratory is killed in every run or drawn."""
    for (always, others), known in ((LABELLING, label_kills.VICTIMS), (TRAINING, training_kills.VICTIMS)):
        assert sorted((always, *others)) == sorted(known)


def test_three_commits_in_turn_kill_every_victim(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash modulo the number of victims decides; without a hash, all are killed."""
    found = [victims(*TRAINING, format(number, "040x")) for number in (12, 13, 14)]
    assert found == [("rank", "node"), ("rank", "notice"), ("rank", "driver")]
    monkeypatch.setenv(COMMIT, "0d")
    assert victims(*LABELLING) == ("driver", "writer")
    monkeypatch.delenv(COMMIT)
    assert victims(*LABELLING) == ("driver", "actor", "writer", "node")


def test_a_commit_takes_one_form_of_a_test_and_the_next_commit_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash modulo the number of forms decides; without a hash, each form is a test."""
    monkeypatch.delenv(COMMIT, raising=False)
    assert one_of("a", "b", "c") == ("a", "b", "c")
    found = []
    for number in range(9, 12):
        monkeypatch.setenv(COMMIT, format(number, "040x"))
        found.append(one_of("a", "b", "c"))
    assert found == [("a",), ("b",), ("c",)]


def test_what_is_printed_replays_the_draw(capsys: pytest.CaptureFixture[str]) -> None:
    """The line names the victims and the variable with the hash."""
    main("0d")
    assert capsys.readouterr().out.startswith(
        f"killed in labelling: driver, writer; training: rank, notice (again: {COMMIT}=0d "
    )
