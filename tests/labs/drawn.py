"""The victims that the crash tests kill: all, or, for `.ci/run`, those that are drawn from the hash of the commit.

    python -m tests.labs.drawn COMMIT       print them

One victim each is killed in every run, and one more in every third; `.ci/nightly` kills all of them, several times.
"""

import os
import sys
from collections.abc import Sequence

#: The variable with the commit's hash; where it is not set, every victim is killed.
COMMIT = "DISTILL_COMMIT"
#: The victim of every run, and those of which one is drawn.
LABELLING = ("driver", ("actor", "writer", "node"))
TRAINING = ("rank", ("node", "notice", "driver"))


def drawn(always: str, others: Sequence[str], commit: str | None = None) -> tuple[str, ...]:
    """Return the victims for a commit's hash, by default that in the environment; all of them without one."""
    number = commit or os.environ.get(COMMIT)
    return (always, others[int(number, 16) % len(others)]) if number else (always, *others)


def main(commit: str) -> None:
    """Print the victims of a commit, and how to kill them again."""
    found = "; ".join(
        f"{name}: {', '.join(drawn(*victims, commit))}"
        for name, victims in (("labelling", LABELLING), ("training", TRAINING))
    )
    sys.stdout.write(f"killed in {found} (again: {COMMIT}={commit} .venv/bin/pytest -m crash tests/crash)\n")


if __name__ == "__main__":
    main(sys.argv[1])
