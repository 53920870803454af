"""SIGKILL while Ray labels: of the driver, a teacher actor, a writer, or a whole node, at seeded moments.

``python -m tests.labs.label_kills --runs 40 --seed 0`` runs ten scenarios for each victim and prints what became of the
stores; the exit status is 1 if any of them is not, byte for byte, the store of a run that nobody killed, or if a
teacher that throws when it is asked finds anything left to do. A scenario is its victim, seed and number. The moment
is a number of files that have been written, drawn from the seed; a kill that comes too late to cut the run is drawn
again, on a new store. One Ray cluster serves all scenarios; the node that is killed is a second one, new each time.
"""

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from ray_distill.labels.model.work_units import Receipt
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.tools.audit import audit
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.storage import files
from ray_distill.testing.labels import winners
from tests.labs import campaign as lab
from tests.labs.scenarios import Driver, Hung, TooLate, play, small_cluster
from tests.labs.victims import kill_node, processes, strike

VICTIMS = ("driver", "actor", "writer", "node")
ROWS, UNIT_ROWS = 840, 4
#: Seconds that one labelling may take, on a busy machine too, before it counts as hung.
HUNG = 400.0
STUDENT = {
    "from": "module",
    "model": "ray_distill.testing.models:tiny_text_model",
    "arguments": {"classes": list(lab.CLASSES)},
}
#: What Ray calls the process of a teacher actor, and that of a task that writes units while it runs.
ACTOR, WRITER = "ray::MapWorker(MapBatches(LabelActor))", "ray::MapBatches(write_units)"


@dataclass(kw_only=True)
class Outcome:
    """What became of one scenario's store."""

    victim: str
    number: int
    moments: list[int] = field(default_factory=list)
    """Units that had been written at each kill."""
    resumed: int = 0
    """Units that were not committed when the command was run again (driver alone)."""
    orphans: int = 0
    """Attempts that no log entry names: what a kill may leave behind."""
    lost: int = 0
    """Rows without labels."""
    twice: int = 0
    """Units that two log entries name, and rows that are read more than once."""
    unequal: int = 0
    """Units whose bytes differ from the uncrashed run's."""
    wrong: list[str] = field(default_factory=list)
    """Everything else that is not as it must be."""

    @property
    def ok(self) -> bool:
        return not (self.lost or self.twice or self.unequal or self.wrong) and bool(self.moments)

    @property
    def told(self) -> str:
        return f"killed at {self.moments} units, {self.resumed} resumed, {self.orphans} orphans"


class Lab:
    """A cluster, a frozen snapshot, and the bytes of a store that nobody disturbed."""

    def __init__(self, folder: Path, cluster: Cluster, rows: int = ROWS):
        self.folder, self.cluster = folder, cluster
        self.fuse = folder / "fuse"
        source = lab.write_rows(folder / "rows.jsonl", lab.annotated(lab.texts(rows, seed=3), train_labels=30))
        teacher = {"model": "tests.labs.campaign:spelling_teacher", "arguments": {"fuse": str(self.fuse)}}
        self.config = str(
            lab.write_config(
                folder / "campaign.yaml",
                lab.config_of(
                    folder,
                    source,
                    teacher,
                    student__model=STUDENT,
                    tracking={"enabled": False},
                    labels__unit_rows=UNIT_ROWS,
                    labels__resources={"actors": [1, 2]},
                ),
            )
        )
        self.driver = self._driver()
        self.driver.begin(["snapshot", self.config])
        assert self.driver.result(HUNG) == "done 0", self.driver.tail()
        self.snapshot: Snapshot = open_snapshot(str(next((folder / "out" / "snapshots").iterdir())))
        self.rows = [
            one
            for shard in self.snapshot.shards
            for one in self.snapshot.read_shard(shard, ["row_id"]).column("row_id").to_pylist()
        ]
        started = time.monotonic()
        self.label(self.store("uncrashed"))
        self.seconds = time.monotonic() - started
        self.expected = committed(self.store("uncrashed"))
        self.units = len({unit for unit, _ in self.expected})

    def _driver(self) -> Driver:
        return Driver("label_driver.py", self.folder, self.cluster.address)

    def store(self, name: str) -> str:
        return str(self.folder / "stores" / name)

    def begin(self, store: str) -> None:
        self.driver.begin(["label", self.config, "--set", f"labels.store={store}"])

    def label(self, store: str) -> None:
        """Label to the end, with nobody killed."""
        self.begin(store)
        answer = self.driver.result(HUNG)
        assert answer == "done 0", f"{store}: {answer}:\n{self.driver.tail()}"

    def scenario(self, victim: str, seed: int, number: int) -> Outcome:
        """Kill, let it end or run it again, and look at the store."""
        for draw in range(10):
            rng = random.Random(f"{seed}/{victim}/{number}/{draw}")
            outcome, store = Outcome(victim=victim, number=number), self.store(f"{victim}-{number}-{draw}")
            try:
                with self._second_node(victim) as node:
                    self._killed(outcome, store, rng, node)
                self._examine(outcome, store)
            except TooLate:
                continue
            except Hung as error:
                outcome.wrong.append(str(error))
                self.driver.kill()
                self.driver = self._driver()
            return outcome
        raise AssertionError(f"{victim} {number}: ten moments drawn, each too late")

    def _killed(self, outcome: Outcome, store: str, rng: random.Random, node: Any) -> None:
        kills = rng.choice((1, 2)) if outcome.victim in ("actor", "writer") else 1
        self.begin(store)
        for moment in sorted(rng.sample(range(1, int(0.85 * self.units)), kills)):
            written = self._await(
                lambda moment=moment: _attempts(store) >= moment and self._kill(outcome.victim, node),
                store,
                needed=not outcome.moments,
            )
            if written is not None:
                outcome.moments.append(written)
        if outcome.victim == "driver":
            self.driver = self._driver()
            outcome.resumed = self.units - len(_winners(store))
            self.begin(store)
        answer = self.driver.result(HUNG)
        if answer != "done 0":
            outcome.wrong.append(f"{answer}: {self.driver.tail()}")

    def _await(self, struck: Callable[[], bool], store: str, *, needed: bool) -> int | None:
        """Wait for the kill; units that had been written then, or None if another one was not to be had any more.

        Raises:
            TooLate: all units were written before the first kill.
        """
        deadline = time.monotonic() + HUNG
        while time.monotonic() < deadline:
            written = _attempts(store)
            if written >= self.units:
                if not needed:
                    return None
                self.driver.result(HUNG)
                raise TooLate
            if struck():
                return written
            answer = self.driver.answer()
            if answer is not None:
                raise Hung(f"{answer}, before its time:\n{self.driver.tail()}")
            time.sleep(0.01)
        raise Hung(f"nobody to kill after {HUNG:g} s:\n{self.driver.tail()}")

    def _kill(self, victim: str, node: Any) -> bool:
        """SIGKILL a victim that is at work now; False if there is none."""
        if victim == "driver":
            self.driver.kill()
            return True
        if victim == "node":
            return kill_node(node)
        return any(strike(pid, ACTOR if victim == "actor" else WRITER) for pid in processes(self.cluster))

    @contextmanager
    def _second_node(self, victim: str) -> Iterator[Any]:
        """A node that may be killed, beside the one of the driver."""
        if victim != "node":
            yield None
            return
        node = self.cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
        try:
            yield node
        finally:
            self.cluster.remove_node(node, allow_graceful=False)

    def _examine(self, outcome: Outcome, store: str) -> None:
        """Compare the store with the undisturbed one, and show that nothing is left to do."""
        found = committed(store)
        outcome.unequal = len(
            {
                unit
                for unit, kind in found.keys() | self.expected.keys()
                if found.get((unit, kind)) != self.expected.get((unit, kind))
            }
        )
        report = audit(store, self.snapshot)
        if not report.ok or (report.units, report.rows) != (self.units, len(self.rows)):
            outcome.wrong.append(f"audit: {report.to_dict()}")
        outcome.orphans = sum(name.startswith("distributions/") for name in report.orphans)
        read = Counter(open_label_set(open_store(store).ref(self.snapshot), self.snapshot).read()[0].to_pylist())
        outcome.lost = len(set(self.rows) - set(read))
        outcome.twice = sum(count - 1 for named in (read, Counter(_named(store))) for count in named.values())
        before = _attempts(store)
        self.fuse.touch()
        try:
            self.begin(store)
            answer = self.driver.result(HUNG)
        finally:
            self.fuse.unlink()
        if answer != "done 0" or _attempts(store) != before:
            outcome.wrong.append(f"a further run labelled again: {answer}: {self.driver.tail()}")

    def close(self) -> None:
        self.driver.close()


def committed(store_url: str) -> dict[tuple[str, str], bytes]:
    """The committed bytes by (unit, kind of file): how an attempt is called is left out."""
    return {
        (unit, name.split("/")[0]): files.read_bytes(files.join(store_url, name))
        for unit, receipt in _winners(store_url).items()
        for name in receipt.files()
    }


def _winners(store_url: str) -> dict[str, Any]:
    store = open_store(store_url)
    store.log.refresh()
    return dict(winners(store.log.records))


def _named(store_url: str) -> list[str]:
    store = open_store(store_url)
    store.log.refresh()
    return [
        entry.unit for number, record in enumerate(store.log.records) for entry in Receipt.in_record(record, number)
    ]


def _attempts(store_url: str) -> int:
    """Units of which a whole file of labels has been written."""
    try:
        return sum(
            1
            for unit in os.scandir(f"{store_url}/distributions")
            if any(name.endswith(".parquet") and name[0] != "." for name in os.listdir(unit))  # noqa: PTH208
        )
    except FileNotFoundError:
        return 0


@contextmanager
def open_lab(rows: int = ROWS) -> Iterator[Lab]:
    """A lab on a cluster of its own; it is gone afterwards. Warm workers are kept for the next store."""
    with small_cluster("kill-lab", [Path(__file__).parents[2]], cpus=2, num_workers_soft_limit=8) as (folder, cluster):
        opened = Lab(folder, cluster, rows)
        try:
            yield opened
        finally:
            opened.close()


if __name__ == "__main__":
    sys.exit(
        play(
            __doc__,
            open_lab,
            VICTIMS,
            runs=40,
            about=lambda opened: (
                f"{opened.units} units of up to {UNIT_ROWS} rows, {opened.seconds:.0f} s when nobody is killed"
            ),
            columns={
                "kills": lambda one: len(one.moments),
                **{name: attrgetter(name) for name in ("resumed", "orphans", "lost", "twice", "unequal")},
            },
        )
    )
