"""The queue on disk: order, crashes, two processes at once, damage."""

import json
import logging
import multiprocessing
import os
import sqlite3
from pathlib import Path

import pytest

from ray_distill.tracking.delivery.spool import Spool, new_local_id
from ray_distill.tracking.operations import CreateRun, LogMetrics, SetTags, read_operation


def _operation(number: int, run: str = "r") -> SetTags:
    return SetTags(run=run, tags={"i": str(number)})


def _drain(spool: Spool) -> list[int]:
    """Take everything off, as the process that may replay."""
    found = []
    while (waiting := spool.first()) is not None:
        assert isinstance(waiting.operation, SetTags)
        found.append(int(waiting.operation.tags["i"]))
        spool.acknowledge(waiting)
    return found


def _die_after(folder: Path, numbers: range, acknowledged: int) -> None:
    """Write and acknowledge operations in a process that then dies without any clean-up."""

    def work() -> None:
        spool = Spool(folder)
        for number in numbers:
            spool.append(_operation(number))
        for _ in range(acknowledged):
            waiting = spool.first()
            assert waiting is not None
            spool.acknowledge(waiting)
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 9


def test_nothing_is_created_before_something_waits(tmp_path: Path) -> None:
    """A campaign whose server never fails leaves no spool behind."""
    spool = Spool(tmp_path / "spool")
    assert len(spool) == 0 and spool.first() is None and spool.real_id(new_local_id()) is None
    with spool.replaying() as mine:
        assert not mine
    assert not (tmp_path / "spool").exists()


def test_operations_come_back_in_order_and_as_they_were(tmp_path: Path) -> None:
    """First in, first out, whatever their kind; the spool can be used again."""
    spool = Spool(tmp_path)
    operations = [
        CreateRun(run="spooled-1", name="train", parent=None, start=3, tags={"a": "ä\n"}),
        LogMetrics(run="spooled-1", points=(("loss", 0.1, 5, 0), ("loss", 1e-300, 6, 1))),
        _operation(5),
    ]
    for operation in operations:
        spool.append(operation)
    assert len(spool) == 3
    for operation in operations:
        waiting = spool.first()
        assert waiting is not None and waiting.operation == operation
        assert read_operation(operation.model_dump_json()) == operation
        spool.acknowledge(waiting)
    assert [path.name for path in tmp_path.iterdir()] == ["spool.db"]
    spool.append(_operation(6))
    assert _drain(spool) == [6]


def test_what_a_dead_process_left_comes_first(tmp_path: Path) -> None:
    """What a killed process left is replayed by the next, before its own; acknowledged operations stay gone."""
    _die_after(tmp_path, range(4), acknowledged=1)
    spool = Spool(tmp_path)
    spool.append(_operation(4))
    assert _drain(spool) == [1, 2, 3, 4]


def test_one_process_at_a_time_replays(tmp_path: Path) -> None:
    """Two may append; the second that wants to replay is refused until the first has done, or died."""
    first, second = Spool(tmp_path), Spool(tmp_path)
    first.append(_operation(0))
    with first.replaying() as mine:
        assert mine
        second.append(_operation(1))
        with second.replaying() as also:
            assert not also
        assert _drain(first) == [0, 1]
    with second.replaying() as mine:
        assert mine

    def die() -> None:
        with Spool(tmp_path).replaying() as mine:
            os._exit(9 if mine else 1)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == 9
    with second.replaying() as mine:
        assert mine


def test_two_processes_that_write_and_replay_at_once_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """Each appends 100 operations and takes off what it may meanwhile; what was taken is all, each once, in order."""

    def work(run: str) -> None:
        spool = Spool(tmp_path / "spool")
        with (tmp_path / run).open("w") as taken:
            for number in range(100):
                spool.append(_operation(number, run))
                with spool.replaying() as mine:
                    while mine and (waiting := spool.first()) is not None:
                        taken.write(f"{waiting.number} {waiting.operation.model_dump_json()}\n")
                        spool.acknowledge(waiting)

    processes = [multiprocessing.get_context("fork").Process(target=work, args=(run,)) for run in ("one", "two")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    lines = [line.partition(" ") for run in ("one", "two") for line in (tmp_path / run).read_text().splitlines()]
    taken = sorted((int(number), read_operation(text)) for number, _, text in lines)
    left = Spool(tmp_path / "spool")
    while (waiting := left.first()) is not None:
        taken.append((waiting.number, waiting.operation))
        left.acknowledge(waiting)
    for run in ("one", "two"):
        mine = [operation for _, operation in taken if operation.run == run]
        assert mine == [_operation(number, run) for number in range(100)]


def test_a_row_that_is_not_an_operation_costs_that_row_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is put aside, and said."""
    spool = Spool(tmp_path)
    for number in range(3):
        spool.append(_operation(number))
    with sqlite3.connect(tmp_path / "spool.db") as database:
        database.execute("UPDATE waiting SET operation = 'rubbish' WHERE n = 2")
    assert _drain(spool) == [0, 2]
    assert "damaged operation" in caplog.text
    assert json.loads((tmp_path / "rejected.jsonl").read_text())["operation"] == "rubbish"


def test_a_file_that_is_not_a_database_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning names it, and the spool goes on with a new one."""
    caplog.set_level(logging.WARNING)
    (tmp_path / "spool.db").write_bytes(b"no database at all" * 100)
    spool = Spool(tmp_path)
    spool.append(_operation(0))
    assert _drain(spool) == [0]
    (aside,) = tmp_path.glob("damaged-*.db")
    assert aside.read_bytes() == b"no database at all" * 100 and aside.name in caplog.text


def test_a_folder_that_cannot_be_used_is_an_os_error(tmp_path: Path) -> None:
    """Callers handle one kind of error."""
    (tmp_path / "spool.db").mkdir()
    with pytest.raises(OSError, match="cannot be used"):
        Spool(tmp_path).append(_operation(0))


def test_kept_files_survive_their_original_and_go_with_their_record(tmp_path: Path) -> None:
    """A report that waits is a copy: rewriting or deleting the original does not change it."""
    source = tmp_path / "report.html"
    source.write_text("as reported")
    spool = Spool(tmp_path / "spool")
    kept, path = spool.keep_files(source, link=False)
    source.write_text("changed")
    assert path.name == "report.html" and path.read_text() == "as reported"
    spool.append(_operation(0), kept)
    _drain(spool)
    assert not path.exists()


def test_a_kept_model_costs_no_second_copy(tmp_path: Path) -> None:
    """Files that never change are hard-linked."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    _, path = Spool(tmp_path / "spool").keep_files(tmp_path / "model", link=True)
    assert (path / "model.safetensors").samefile(tmp_path / "model" / "model.safetensors")


def test_local_ids_are_resolved_by_every_later_session(tmp_path: Path) -> None:
    """The server's id of a run is found by its local one; a server's id is its own answer."""
    local = new_local_id()
    spool = Spool(tmp_path)
    assert spool.real_id("abc") == "abc" and spool.real_id(local) is None and not spool.is_mapped("abc")
    spool.map_id(local, "abc")
    assert Spool(tmp_path).real_id(local) == "abc" and spool.is_mapped("abc")


def test_rejected_operations_are_kept_with_the_reason(tmp_path: Path) -> None:
    """Nothing is thrown away silently."""
    spool = Spool(tmp_path)
    spool.reject(_operation(7, "x"), "too long")
    found = json.loads((tmp_path / "rejected.jsonl").read_text())
    assert found == {"reason": "too long", "op": "tags", "run": "x", "tags": {"i": "7"}}
    assert len(Spool(tmp_path)) == 0
