"""What a teacher's failure leads to: halving, counting, suspecting; without Ray."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Resources, TeacherConfig
from ray_distill.config.labels import FailuresConfig
from ray_distill.errors import LabelError
from ray_distill.labels.format.arrow_tables import table_to_halved, table_to_signal
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.labels.model.signal import Signal
from ray_distill.labels.model.work_units import WorkUnit
from ray_distill.runtime.core.failures import Failure, Rows, answer_halving, died, failure_of, out_of_memory, timed_out
from ray_distill.runtime.labelling.actors import LabelActor
from ray_distill.runtime.labelling.batching import answer_all, request_of
from ray_distill.runtime.labelling.death_counter import DeathCounter
from ray_distill.runtime.labelling.encode_write import LabelJob
from ray_distill.runtime.labelling.isolate_failures import FailedUnit, FaultCheck, spread_rows
from ray_distill.runtime.labelling.teacher_actor import Plan
from ray_distill.tasks.encoded import Encoded
from ray_distill.teachers.base import LabelRequest
from ray_distill.testing.labels import fake_manifest, row_id
from ray_distill.testing.models import FakeTeacher

MANIFEST = fake_manifest(layers=(1,)).with_changes(batch=8)
JOB = LabelJob(
    task="text_classification",
    snapshot=SnapshotRef(url="s", fingerprint="f"),
    teacher=TeacherConfig(model="teacher"),
    store_url="store",
    manifest=MANIFEST,
    resources=Resources(),
    failures=FailuresConfig(attempts=2),
)


def _batches(rows: int, size: int) -> list[Rows]:
    order = np.arange(rows, dtype=np.int64)[::-1]
    return [order[start : start + size] for start in range(0, rows, size)]


@pytest.mark.parametrize("bad", [(), (0,), (3, 4), (11,), tuple(range(12))])
@pytest.mark.parametrize("size", [1, 5, 12])
def test_halving_finds_the_failing_rows_and_keeps_the_others_in_order(bad: tuple[int, ...], size: int) -> None:
    """Whichever rows fail, they alone have no answer; a batch without one is asked once, as planned."""
    asked: list[list[int]] = []

    def request(rows: Rows) -> list[int] | Failure:
        asked.append(rows.tolist())
        return died() if set(rows.tolist()) & set(bad) else rows.tolist()

    found = answer_halving(_batches(12, size), request)
    assert sum(found.parts, []) == [row for row in range(11, -1, -1) if row not in bad]
    assert found.failed == dict.fromkeys(bad, died())
    assert all(rows.tolist() in asked for rows in _batches(12, size))
    assert len({tuple(rows) for rows in asked}) == len(asked)
    assert found.halved == (1 if bad and size > 1 else 0)


@pytest.mark.parametrize(("fits", "halved"), [(12, 0), (11, 6), (5, 3), (1, 1)])
def test_the_smallest_batch_of_a_halved_one_is_recorded(fits: int, halved: int) -> None:
    """12 rows in memory for fewer: 6 + 6, or 3 + 3 + 3 + 3, or one by one."""
    memory = Failure(kind="memory", reason="")
    found = answer_halving(_batches(12, 12), lambda rows: memory if len(rows) > fits else rows.tolist())
    assert found.halved == halved
    assert sum(found.parts, []) == list(range(11, -1, -1))


class SmallTeacher:
    """A fake teacher with memory for ``fits`` rows."""

    def __init__(self, fits: int, error: Exception):
        self.inner, self.fits, self.error = FakeTeacher(space=MANIFEST.space), fits, error
        self.fingerprint, self.space = self.inner.fingerprint, self.inner.space

    def answer(self, encoded: Encoded, request: LabelRequest) -> Signal:
        if encoded.rows > self.fits:
            raise self.error
        return self.inner.answer(encoded, request)


def _encoded(rows: int) -> Encoded:
    ids = pa.array([row_id(number) for number in range(rows)], pa.binary(16))
    lengths = np.arange(rows) % 4 + 1
    return Encoded(
        row_ids=ids,
        features={
            "input_ids": RaggedArray(
                values=np.zeros(lengths.sum(), np.int32), offsets=np.concatenate([[0], np.cumsum(lengths)])
            )
        },
    )


MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory"),
]


@pytest.mark.parametrize("error", MEMORY, ids=range(len(MEMORY)))
def test_a_teacher_that_runs_out_of_memory_answers_in_halves(error: Exception) -> None:
    """The same rows in the same order with the same answer, and the smallest batch is told."""
    encoded, request = _encoded(10), request_of(MANIFEST)
    whole = answer_all(FakeTeacher(space=MANIFEST.space), encoded, request, 8)
    row_ids, signal, unusable = answer_all(SmallTeacher(3, error), encoded, request, 8)
    assert (row_ids, unusable) == (whole[0], whole[2])
    np.testing.assert_array_equal(signal.distributions.logp, whole[1].distributions.logp)
    np.testing.assert_array_equal(signal.hidden[1].values, whole[1].hidden[1].values)
    with pytest.raises(type(error)):
        answer_all(SmallTeacher(0, error), encoded, request, 8)


class Alone(LabelActor):
    """An actor outside of Ray, of a teacher with little memory; notes when the time limit of a batch is entered."""

    def __init__(self, fits: int, error: Exception):
        self.small = SmallTeacher(fits, error)
        self.entered: list[int] = []
        super().__init__(JOB)

    def _load(self) -> None:
        self.teacher, self.request = self.small, request_of(MANIFEST)

    @contextlib.contextmanager
    def _limited(self, unit: str) -> Iterator[None]:
        self.entered.append(1)
        yield
        self.entered.append(-1)


@pytest.mark.parametrize("error", MEMORY, ids=range(len(MEMORY)))
def test_an_actor_answers_a_unit_in_halves_and_marks_it(error: Exception) -> None:
    """Each batch within its own limit; the smallest batch is reported, and every row has its answer."""
    encoded = _encoded(10)
    table = encoded.to_table().append_column("unit_id", pa.array(["u"] * 10))
    block = table.append_column("reason", pa.nulls(10, pa.string()))
    actor = Alone(3, error)
    found = actor.answer_block("u", block)
    whole = Alone(99, error).answer_block("u", block)
    assert table_to_halved(found) == 2 and table_to_halved(whole) == 0
    assert sum(actor.entered) == 0 and actor.entered.count(1) == 1 + 2 + 4 + 1
    (ids, signal), (other_ids, other) = table_to_signal(found), table_to_signal(whole)
    assert ids == other_ids
    np.testing.assert_array_equal(signal.distributions.logp, other.distributions.logp)
    with pytest.raises(type(error)):
        Alone(0, error).answer_block("u", block)


def test_another_error_is_raised_at_once() -> None:
    """Only memory is a matter of the batch's size."""
    error = ValueError("odd")
    with pytest.raises(ValueError, match="odd"):
        answer_all(SmallTeacher(3, error), _encoded(10), request_of(MANIFEST), 8)


def test_failures_are_told_apart() -> None:
    """Memory, errors, and errors after which the process is of no more use; the reason is one short line."""
    assert all(out_of_memory(error) and failure_of(error).kind == "memory" for error in MEMORY)
    assert not out_of_memory(ValueError("out of memory"))
    told = failure_of(ValueError("a" * 1000 + "\nmore"))
    assert (told.kind, told.spent) == ("raised", False)
    assert told.reason == "teacher raised ValueError: " + "a" * 120
    assert failure_of(KeyError()).reason == "teacher raised KeyError: no message"
    assert failure_of(RuntimeError("CUDA error: device-side assert triggered")).spent
    assert not failure_of(MEMORY[-1]).spent
    assert timed_out(0.5).reason == "teacher took longer than 0.5 s on this row"
    assert timed_out(1).spent and died().spent


def _run(deaths: DeathCounter, *units: tuple[str, bool]) -> None:
    """Units that are answered, or not, by a process that lives on."""
    for unit, answered in units:
        assert deaths.begin(unit, "actor") is None
        deaths.done(unit, answered)


def test_a_unit_is_given_up_after_as_many_deaths_as_attempts() -> None:
    """What was begun and never done is a death, of that unit alone."""
    deaths = DeathCounter(attempts=3)
    _run(deaths, ("good", True))
    for _ in range(3):
        assert deaths.begin("bad", "actor") is None
        _run(deaths, ("good", True), ("other", True))
    for _ in range(2):
        assert deaths.begin("bad", "actor") == "the teacher's process died 3 times on the unit"
    _run(deaths, ("more", True))


def test_a_unit_whose_time_is_over_is_not_tried_again() -> None:
    """At once, and for the reason that was given."""
    deaths = DeathCounter(attempts=3)
    _run(deaths, ("good", True))
    assert deaths.begin("bad", "actor") is None
    deaths.give_up("bad", "too slow")
    assert deaths.begin("bad", "actor") == "too slow"
    _run(deaths, ("good", True))


def test_when_nothing_was_ever_answered_nothing_more_is_tried() -> None:
    """After as many failures as attempts the whole run waits for a verdict; trust, or one answer, ends that."""
    for rescue in (lambda deaths: deaths.trust(), lambda deaths: deaths.done("late", True)):
        deaths = DeathCounter(attempts=2)
        assert deaths.begin("late", "actor") is None
        for _ in range(2):
            assert deaths.begin("first", "actor") is None
        assert deaths.begin("first", "actor") is not None
        assert deaths.begin("second", "actor") == "the teacher has failed on every unit before this one"
        rescue(deaths)
        assert deaths.begin("second", "actor") is None
        assert deaths.begin("first", "actor") == "the teacher's process died 2 times on the unit"


def test_deaths_while_loading_count_in_a_row() -> None:
    """An actor that Ray restarts has the same name; one that loads ends the row."""
    deaths = DeathCounter(attempts=2)
    assert deaths.loading("a") is None is deaths.loading("b")
    assert deaths.loading("a") is None
    deaths.loaded("b")
    assert deaths.loading("a") is None
    refused = deaths.loading("a")
    assert refused is not None and "died 2 times in a row" in refused


def test_an_actor_that_comes_back_has_died_on_what_it_began() -> None:
    """A death counts when the actor is started again, although it may be given another unit first."""
    deaths = DeathCounter(attempts=2)
    for unit in ("first", "second"):
        assert deaths.loading("a") is None
        deaths.loaded("a")
        assert deaths.begin(unit, "a") is None
    assert deaths.begin("another actor's", "b") is None
    assert deaths.loading("a") is None
    assert deaths.begin("third", "a") == "the teacher has failed on every unit before this one"


def test_a_step_beside_the_teacher_is_bounded_too() -> None:
    """Reading or writing that kills its process so often is refused; a death that does not come back is forgotten."""
    deaths = DeathCounter(attempts=2)
    for name in ("read", "write"):
        assert deaths.step(name) is None
    deaths.done("write")
    assert deaths.step("write") is None is deaths.step("read")
    assert deaths.step("read") == "the process died 2 times"


@pytest.mark.parametrize(
    ("block", "told"),
    [("threading.Event().wait()", "told"), ("ctypes.PyDLL(None).sleep(60)", ""), ("time.sleep(0)", "done")],
)
def test_a_block_that_takes_too_long_ends_the_process(block: str, told: str) -> None:
    """Also one that never lets go of Python's lock, though then there is no last word; a quick one goes on."""
    code = (
        "import ctypes, sys, threading, time\nfrom ray_distill.runtime.labelling.death_counter import limit\n"
        f"with limit(0.3, lambda: print('told', end='', flush=True), grace=0.3):\n    {block}\n"
        "print('done', end='')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50)
    assert (ended.stdout, ended.returncode) == (told, 0 if told == "done" else 1)


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([1], 3, [("u0", 0)]),
        ([6], 3, [("u0", 0), ("u0", 2), ("u0", 4)]),
        ([6, 4], 3, [("u0", 0), ("u1", 0), ("u0", 2)]),
        ([0, 2, 2, 2], 2, [("u1", 0), ("u2", 0)]),
        ([0], 3, []),
    ],
)
def test_witnesses_come_from_many_units_and_lengths(
    sizes: Sequence[int], count: int, expected: list[tuple[str, int]]
) -> None:
    """As many distinct rows as asked for, where there are so many."""
    plans = [
        (f"u{at}", Plan(batches=tuple(np.split(np.arange(size), [2])), row_ids=(), rejected=()))
        for at, size in enumerate(sizes)
    ]
    assert [(unit, int(rows[0])) for unit, rows in spread_rows(plans, count)] == expected


class FakeUnitTeacher:
    """Answers rows as a set of good ones says, and keeps what it was asked."""

    def __init__(self, plans: dict[str, Plan], good: set[tuple[str, int]]):
        self.plans, self.good, self.asked = plans, good, []

    def plan(self, unit: str) -> Plan:
        return self.plans[unit]

    def answer(self, unit: str, rows: Rows, deaths: int) -> pa.Table | Failure:
        self.asked.append((unit, int(rows[0])))
        return pa.table({}) if self.asked[-1] in self.good else timed_out(1)


def _unit(name: str) -> WorkUnit:
    return WorkUnit(unit_id=name, shard="s", start=0, stop=8, rows=tuple(range(8)))


def _suspect(
    good: set[tuple[str, int]], sizes: dict[str, int], known: str | None = None
) -> tuple[FaultCheck, FakeUnitTeacher]:
    """A teacher under suspicion that answers the ``good`` rows; units have rows 0, 1, …; two attempts."""
    units = {name: FailedUnit(unit=_unit(name), reason="") for name in (*sizes, *([known] if known else []))}
    plans = {
        units[name].text: Plan(batches=(np.arange(sizes.get(name, 3)),), row_ids=(), rejected=()) for name in units
    }
    asker = FakeUnitTeacher(plans, {(units[name].text, row) for name, row in good})
    failed = [units[name] for name in sizes]
    return FaultCheck(asker, JOB, failed, units[known].unit if known else None), asker


def test_a_teacher_that_answers_a_witness_is_cleared() -> None:
    """A row of a unit that it answered before is asked first; without one, rows of the failed units are."""
    suspect, asker = _suspect({("known", 0)}, {"a": 4, "b": 4}, "known")
    suspect.require_answer("why")
    assert len(asker.asked) == 1
    suspect, asker = _suspect({("b", 0)}, {"a": 4, "b": 4})
    suspect.require_answer("why")
    assert len(asker.asked) == 2


@pytest.mark.parametrize(("known", "told"), [("known", "a row that it has answered before"), (None, "every row")])
def test_a_teacher_that_answers_no_witness_is_the_one_at_fault(known: str | None, told: str) -> None:
    """After as many tries as attempts, one error that names the failure."""
    suspect, asker = _suspect(set(), {"a": 4, "b": 4}, known)
    with pytest.raises(LabelError, match=f"teacher fails on {told}, 2 times of 2: teacher took longer than 1 s"):
        suspect.require_answer("why")
    assert len(asker.asked) == 2


def test_too_few_rows_prove_nothing_against_the_teacher() -> None:
    """The last row of a store may be a bad one: it goes to quarantine, and the run ends well."""
    suspect, asker = _suspect(set(), {"a": 1})
    suspect.require_answer("why")
    assert len(asker.asked) == 1


def test_rows_that_fail_in_a_row_bring_the_witness_back() -> None:
    """Each time that so many rows have failed alone, the row answered last is asked again: the teacher may break."""
    suspect, asker = _suspect(set(), {"a": 8})
    answered = np.array([5], dtype=np.int64)
    unit = next(iter(asker.plans))
    asker.good = {(unit, 5)}
    suspect.record(unit, answered, pa.table({}))
    for _ in range(4):
        suspect.record(unit, np.array([1], dtype=np.int64), timed_out(1))
        suspect.record(unit, np.arange(3), timed_out(1))
    assert asker.asked == [(unit, 5)] * 2
    asker.good = set()
    suspect.record(unit, np.array([1], dtype=np.int64), timed_out(1))
    with pytest.raises(LabelError, match="a row that it has answered before, 2 times of 2"):
        suspect.record(unit, np.array([2], dtype=np.int64), timed_out(1))
