"""What `.ci/run` draws from the hash of the commit: victims of the crash tests, long tests, and forms of them.

    python -m tests.labs.drawn COMMIT       print the victims

One victim each is killed in every run, and one more in every third; of several forms of one long test a run takes one,
and of the slowest files a third. `.ci/nightly` kills all victims, several times, and takes all files and forms; so does
pytest where no commit is set.
"""

import os
import sys
from collections.abc import Sequence

#: The variable with the commit's hash; where it is not set, every victim is killed.
COMMIT = "DISTILL_COMMIT"
#: The victim of every run, and those of which one is drawn.
LABELLING = ("driver", ("actor", "writer", "node"))
TRAINING = ("rank", ("node", "notice", "driver"))


def victims(always: str, others: Sequence[str], commit: str | None = None) -> tuple[str, ...]:
    """Return the victims for a commit's hash, by default that in the environment; all of them without one."""
    number = commit or os.environ.get(COMMIT)
    return (always, others[int(number, 16) % len(others)]) if number else (always, *others)


def one_of(*forms: str) -> tuple[str, ...]:
    """Return the form of a test that the commit in the environment draws, the k-th of n; all of them without one."""
    number = os.environ.get(COMMIT)
    return (forms[int(number, 16) % len(forms)],) if number else forms


def left_out(files: Sequence[str], parts: int, commit: str | None = None) -> frozenset[str]:
    """Return all files but every ``parts``-th, beginning with the one that a commit draws; none without a commit."""
    number = commit or os.environ.get(COMMIT)
    return frozenset(files) - frozenset(files[int(number, 16) % parts :: parts]) if number else frozenset()


def main(commit: str) -> None:
    """Print the victims of a commit, and how to kill them again."""
    found = "; ".join(
        f"{name}: {', '.join(victims(*choice, commit))}"
        for name, choice in (("labelling", LABELLING), ("training", TRAINING))
    )
    sys.stdout.write(f"killed in {found} (again: {COMMIT}={commit} .venv/bin/pytest -m crash tests/crash)\n")


if __name__ == "__main__":
    main(sys.argv[1])
