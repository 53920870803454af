"""Two labellers on one store, interleaved in every way a seed can choose: one winner for each record and unit."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ray_distill.labels.model.work_units import Receipt
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.tools.audit import audit
from ray_distill.storage import files
from ray_distill.storage import unit_store as store_module
from ray_distill.storage.log import CommitLog
from ray_distill.testing.labels import fake_manifest, fake_snapshot, fake_teacher, label_all, row_id

MANIFEST = fake_manifest()
SNAPSHOT = fake_snapshot(range(24))  # six units of 4 rows
#: What a labeller does to the store; between any two of these the other may act.
STEPS = ("create_exclusive", "list_files", "read_many", "read_bytes", "write_bytes", "sizes", "exists")


class Turns:
    """Lets one of several threads go at a time; a seed chooses which, before each step on the store."""

    def __init__(self, seed, workers):
        self._rng = random.Random(seed)
        self._waiting, self._running = set(), set(range(workers))
        self._turn, self._changed = None, threading.Condition()
        self._own = threading.local()
        self.steps = []

    def _choose(self):
        """Called with the lock: when all that still run are waiting, one of them goes."""
        if self._running and self._waiting == self._running:
            self._turn = self._rng.choice(sorted(self._running))
            self._changed.notify_all()

    def step(self, name):
        """Wait for this thread's turn; threads that are not scheduled pass."""
        me = getattr(self._own, "number", None)
        if me is None:
            return
        with self._changed:
            self._waiting.add(me)
            self._choose()
            assert self._changed.wait_for(lambda: self._turn == me, timeout=60)
            self._turn = None
            self._waiting.discard(me)
            self.steps.append((me, name))

    def run(self, work):
        """Run ``work(number)`` in a scheduled thread each; what they raise is raised here."""

        def body(number):
            self._own.number = number
            try:
                work(number)
            finally:
                with self._changed:
                    self._running.discard(number)
                    self._choose()

        numbers = sorted(self._running)
        with ThreadPoolExecutor(len(numbers)) as pool:
            for done in [pool.submit(body, number) for number in numbers]:
                done.result()


@pytest.fixture
def scheduled(monkeypatch):
    """``scheduled(seed, work)`` runs two workers, stepping at each operation on the store; returns the steps."""
    current = [None]

    def stepping(name, real):
        def call(*args, **kwargs):
            if current[0] is not None:
                current[0].step(name)
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        monkeypatch.setattr(files, name, stepping(name, getattr(files, name)))

    def run(seed, work):
        current[0] = Turns(seed, 2)
        try:
            current[0].run(work)
            return current[0].steps
        finally:
            current[0] = None

    return run


def two_labellers(scheduled, url, seed):
    """Race two labellers with a seeded schedule; returns the units each won, and the schedule."""
    won = {}
    steps = scheduled(
        seed,
        lambda number: won.update({number: label_all(url, MANIFEST, SNAPSHOT, units_a_record=1 + (seed + number) % 3)}),
    )
    return won, steps


def check(url, won):
    """Each unit is in one record, by the labeller that thinks it won it; records are dense, labels whole."""
    log = CommitLog(url)
    log.refresh()
    named = [entry.unit for number, record in enumerate(log.records) for entry in Receipt.in_record(record, number)]
    assert len(named) == len(set(named)) == 6
    assert sorted(won[0] + won[1]) == sorted(named)
    report = audit(url, SNAPSHOT)
    assert report.ok and (report.units, report.rows, report.duplicates) == (6, 24, ()), report.to_dict()
    ids, signal = open_label_set(open_store(url).ref(SNAPSHOT), SNAPSHOT).read()
    assert ids.to_pylist() == [row_id(n) for n in range(24)]
    np.testing.assert_array_equal(signal.distributions.logp, fake_teacher(ids, MANIFEST).distributions.logp)


def race_all(scheduled, tmp_path, monkeypatch, seeds):
    """Race under each seed; odd seeds compact after every record. Returns how the races went."""
    shares, schedules = set(), set()
    for seed in seeds:
        monkeypatch.setattr(store_module, "COMPACT_EVERY", 0 if seed % 2 else 1000)
        url = str(tmp_path / str(seed))
        won, steps = two_labellers(scheduled, url, seed)
        check(url, won)
        assert bool(files.list_files(files.join(url, "log/compact"))) == bool(seed % 2)
        shares.add((len(won[0]), len(won[1])))
        schedules.add(tuple(steps))
    assert len(schedules) == len(seeds) and len(shares) > 2, "the seeds must lead to different races"


def test_two_labellers_under_thirty_seeded_schedules(scheduled, tmp_path, monkeypatch):
    """Whatever the order of their steps, every record and unit has one winner and nothing is lost."""
    race_all(scheduled, tmp_path, monkeypatch, range(30))


@pytest.mark.crash
def test_two_labellers_under_two_hundred_more_seeded_schedules(scheduled, tmp_path, monkeypatch):
    """As above, at the size the claim is made for."""
    race_all(scheduled, tmp_path, monkeypatch, range(1000, 1200))


def test_a_schedule_is_its_seed(scheduled, tmp_path):
    """The same seed gives the same steps in the same order: a failure can be run again."""
    first, again = (two_labellers(scheduled, str(tmp_path / name), 7)[1] for name in ("one", "two"))
    assert first == again and {number for number, _ in first} == {0, 1}
