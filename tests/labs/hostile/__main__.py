"""Run the tries and print what came of each: ``python -m tests.labs.hostile FOLDER [--third N]``."""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.labs.hostile import advice, artifacts, chain, litter, machines, moved, settings, streams, tracking
from tests.labs.hostile.ground import Ground, prepare
from tests.labs.hostile.tries import POINTS, Outcome, Try, carry_out

_MODULES = (artifacts, advice, chain, tracking, settings, streams, moved, litter, machines)
#: Every try.
TRIES: tuple[Try, ...] = tuple(one for module in _MODULES for one in module.TRIES)


def some(third: int | None) -> tuple[Try, ...]:
    """Return the tries of one third (0, 1 or 2), without those that start Ray; all of them for None."""
    return TRIES if third is None else tuple(one for one in TRIES if not one.ray)[third % 3 :: 3]


def carry_out_all(tries: Sequence[Try], ground: Ground, folder: Path, *, at_once: int = 2) -> Iterator[Outcome]:
    """Yield the outcomes in the order of the tries; ``at_once`` run at the same time."""
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(
            lambda each: carry_out(each[1], ground, str(folder / f"site-{each[0]}")), list(enumerate(tries))
        )


def main() -> int:
    """Run tries; print a line each and a table; return 1 if any went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="default: a temporary folder")
    parser.add_argument("--third", type=int, choices=(0, 1, 2), help="default: all tries")
    parser.add_argument("--point", type=int, choices=POINTS, help="only those of one point")
    parser.add_argument("--name", default="", help="only those with this text in their names")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ray-distill-hostile-") as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        kept = folder / "kept"
        ground = Ground(folder=kept) if kept.exists() else prepare(folder)
        tries = [one for one in some(options.third) if options.point in (None, one.point) and options.name in one.name]
        outcomes = []
        for outcome in carry_out_all(tries, ground, folder):
            outcomes.append(outcome)
            sys.stdout.write(_line(outcome))
            sys.stdout.flush()
    sys.stdout.write(table(outcomes))
    return 0 if all(outcome.right for outcome in outcomes) else 1


def _line(outcome: Outcome) -> str:
    sign, attempt = "ok   " if outcome.right else "WRONG", outcome.attempt
    return f"{sign} {attempt.point}: {attempt.name} -> {outcome.happened} ({outcome.seconds:.0f} s)\n"


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the Markdown table of the points: tries, and how many went as promised."""
    tried, right = (
        Counter(one.attempt.point for one in outcomes),
        Counter(one.attempt.point for one in outcomes if one.right),
    )
    lines = ["", "| point | tries | as promised |", "|---|---|---|"]
    lines += [f"| {point}. {POINTS[point]} | {tried[point]} | {right[point]} |" for point in sorted(tried)]
    lines += [f"| all | {sum(tried.values())} | {sum(right.values())} |", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
