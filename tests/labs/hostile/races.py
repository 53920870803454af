"""Start any two commands at once on one output: both end well, or one reports at once that the other is at work.

    python -m tests.labs.hostile.races [FOLDER] [--times 3] [--pair label train]

Afterwards `run` finishes the campaign, and it is whole: every row labelled once, one decision about the report in the
chain and the alias at its student, no run of MLflow still RUNNING, nothing waiting in the spool. About twenty seconds a
race; `.ci/nightly` runs all pairs (part ``races``).
"""

import argparse
import re
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path

from tests.labs import campaign as lab
from tests.labs.hostile.ground import STAGES, Ground, Ran, Site, prepare, run

#: Command: the last stage that must have finished before it, and whether it has work for Ray there.
COMMANDS = {
    "snapshot": ("", False),
    "label": ("snapshot", True),
    "train": ("label", True),
    "evaluate": ("train", False),
    "promote": ("evaluate", False),
    "relabel": ("label", True),
    "sweep": ("snapshot", True),
    "audit": ("label", False),
}
#: What a command reports that finds another one at work.
AT_WORK = re.compile(r"is at work|are at work|at work on")


@dataclass(frozen=True, kw_only=True)
class Race:
    """Two commands, started at once."""

    first: str
    second: str
    number: int

    @property
    def stage(self) -> str:
        """The last stage that both need; empty where neither needs one."""
        return max((COMMANDS[self.first][0], COMMANDS[self.second][0]), key=["", *STAGES].index)

    def __str__(self) -> str:
        """Return the commands and the number of the race."""
        return f"{self.first} and {self.second}, {self.number}"


def carry_out(race: Race, ground: Ground, folder: Path) -> str:
    """Run a race on a fresh copy; return how both ended. An AssertionError names what is not whole."""
    site = _site(race, ground, folder)
    try:
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda command: _run(command, site), (race.first, race.second)))
        ended = [_ended(command, ran) for command, ran in zip((race.first, race.second), both, strict=True)]
        assert "well" in ended, f"neither ended well: {both[0].stderr[-800:]} {both[1].stderr[-800:]}"
        _assert_whole(site)
        return ", ".join(f"{name} {how}" for name, how in zip((race.first, race.second), ended, strict=True))
    finally:
        site.remove()


def _site(race: Race, ground: Ground, folder: Path) -> Site:
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
    site = ground.copy(str(folder), stage=race.stage or STAGES[0])
    if not race.stage:
        Site(root=site.output).remove()
    lab.write_rows(site.root / "newer.jsonl", lab.texts(40, seed=91))
    site.change(sweep={"grid": {"seed": [1, 2]}})
    return site


def _run(command: str, site: Site) -> Ran:
    arguments = {
        "audit": ["audit", "out/labels"],
        "relabel": ["relabel", "campaign.yaml", "--source", "newer.jsonl"],
    }.get(command, [command, "campaign.yaml"])
    return run(arguments, site.root, ray=COMMANDS[command][1], seconds=400)


def _ended(command: str, ran: Ran) -> str:
    """Return how a command ended: well, or refused because another is at work."""
    assert "Traceback (most recent call last)" not in ran.stderr, ran.stderr[-1500:]
    if ran.status == 0:
        return "well"
    assert AT_WORK.search(ran.stderr), f"{command} ended with {ran.status}: {ran.stderr[-1500:]}"
    return "refused"


def _assert_whole(site: Site) -> None:
    """Finish the campaign, and assert that nothing is lost, there twice, or still open."""
    finished = run(["run", "campaign.yaml"], site.root, ray=True, seconds=400)
    assert finished.status == 0, finished.stderr[-1500:]
    audited = run(["audit", "out/labels"], site.root)
    assert audited.status == 0, audited.stdout[-800:] + audited.stderr[-800:]
    decisions = list(site.output.glob("promotion/decisions/log/*.json"))
    assert len(decisions) == 1, f"{len(decisions)} decisions about one report"
    assert not list(site.output.glob("spool/**/*.json")), "records wait in the spool"
    with closing(sqlite3.connect(site.output / "mlflow.db")) as database:
        left = database.execute("SELECT name FROM runs WHERE status = 'RUNNING'").fetchall()
        names = {name for (name,) in database.execute("SELECT name FROM runs")}
        alias = database.execute("SELECT alias FROM registered_model_aliases").fetchall()
    assert not left, f"still RUNNING: {left}"
    assert {"label", "train", "evaluate", "promote"} <= names, f"MLflow lacks runs of stages: {sorted(names)}"
    assert alias == [("champion",)], alias


def races(times: int, pair: Sequence[str] | None) -> Iterator[Race]:
    """Yield every race of all pairs, or of one."""
    pairs = [tuple(pair)] if pair else combinations_with_replacement(COMMANDS, 2)
    for first, second in pairs:
        for number in range(times):
            yield Race(first=first, second=second, number=number)


def main() -> int:
    """Run races; print a line each; return 1 if any left something that is not whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="default: a temporary folder")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--pair", nargs=2, choices=COMMANDS)
    options = parser.parse_args()
    wrong = right = 0
    with tempfile.TemporaryDirectory(prefix="ray-distill-races-") as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        ground = Ground(folder=folder / "kept") if (folder / "kept").exists() else prepare(folder)
        for race in races(options.times, options.pair):
            try:
                line = f"ok    {race}: {carry_out(race, ground, folder / 'race')}"
                right += 1
            except Exception as error:  # noqa: BLE001 - a step of the race failed: the others go on
                line = f"WRONG {race}: {error!r}"
                wrong += 1
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{right + wrong} races of {len(COMMANDS)} commands, {right} left a whole campaign\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
