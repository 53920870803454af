import json
import multiprocessing
import os
from pathlib import Path

import pytest

from ray_distill.tracking.spool import Record, Spool, new_local_id


def _drain(spool: Spool) -> list[Record]:
    found = []
    while (record := spool.first()) is not None:
        found.append(record)
        spool.acknowledge()
    return found


def _die_after(folder: Path, records: list[Record], acknowledged: int) -> None:
    """Write and acknowledge records in a process that then dies without any clean-up."""

    def work() -> None:
        spool = Spool(folder)
        for record in records:
            spool.append(record)
        for _ in range(acknowledged):
            spool.acknowledge()
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 9


def test_nothing_is_created_before_something_waits(tmp_path: Path) -> None:
    """A campaign whose server never fails leaves no spool behind."""
    spool = Spool(tmp_path / "spool")
    assert len(spool) == 0 and spool.first() is None
    assert not (tmp_path / "spool").exists()


def test_records_come_back_in_order_and_leave_no_file(tmp_path: Path) -> None:
    """First in, first out; the file goes with its last record, and the spool can be used again."""
    spool = Spool(tmp_path)
    records: list[Record] = [{"op": "tags", "i": i} for i in range(5)]
    for record in records:
        spool.append(record)
    assert len(spool) == 5
    assert _drain(spool) == records
    assert list(tmp_path.glob("*.jsonl")) == []
    spool.append({"op": "tags", "i": 5})
    assert _drain(spool) == [{"op": "tags", "i": 5}]


def test_a_dead_sessions_records_are_adopted(tmp_path: Path) -> None:
    """What a killed process left is replayed by the next, before its own; acknowledged records stay gone."""
    _die_after(tmp_path, [{"i": i} for i in range(4)], acknowledged=1)
    spool = Spool(tmp_path)
    spool.append({"i": 4})
    assert _drain(spool) == [{"i": 1}, {"i": 2}, {"i": 3}, {"i": 4}]
    assert list(tmp_path.glob("*.jsonl")) == []


def test_a_living_sessions_records_are_left_alone(tmp_path: Path) -> None:
    """Two processes may share a folder; neither takes what the other still owns."""
    first = Spool(tmp_path)
    first.append({"i": 0})
    second = Spool(tmp_path)
    assert len(second) == 0
    second.append({"i": 1})
    assert _drain(second) == [{"i": 1}]
    assert _drain(first) == [{"i": 0}]


def test_a_file_cut_anywhere_gives_the_whole_lines_before_the_cut(tmp_path: Path) -> None:
    """Every torn last line is ignored, at every byte, and what is written next is readable."""
    _die_after(tmp_path / "whole", [{"i": i, "text": "ä\n"} for i in range(3)], acknowledged=0)
    (path,) = (tmp_path / "whole").glob("*.jsonl")
    data = path.read_bytes()
    for cut in range(len(data)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / path.name).write_bytes(data[:cut])
        spool = Spool(folder)
        whole = data[:cut].count(b"\n")
        assert len(spool) == whole
        spool.append({"i": 9})
        assert [record["i"] for record in _drain(spool)] == [*range(whole), 9]


def test_a_damaged_line_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line that is no JSON costs that record alone."""
    (tmp_path / "1.jsonl").write_text('{"n": 1, "i": 0}\nrubbish\n{"n": 3, "i": 2}\n')
    assert _drain(Spool(tmp_path)) == [{"i": 0}, {"i": 2}]
    assert "damaged line" in caplog.text


def test_kept_files_survive_their_original_and_go_with_their_record(tmp_path: Path) -> None:
    """A report that waits is a copy: rewriting or deleting the original does not change it."""
    source = tmp_path / "report.html"
    source.write_text("as reported")
    spool = Spool(tmp_path / "spool")
    kept, path = spool.keep_files(source, link=False)
    source.write_text("changed")
    assert path.name == "report.html" and path.read_text() == "as reported"
    spool.append({"kept": kept})
    spool.acknowledge()
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


def test_rejected_records_are_kept_with_the_reason(tmp_path: Path) -> None:
    """Nothing is thrown away silently."""
    spool = Spool(tmp_path)
    spool.reject({"op": "tags", "run": "x"}, "too long")
    assert json.loads((tmp_path / "rejected.jsonl").read_text()) == {"reason": "too long", "op": "tags", "run": "x"}
    assert len(Spool(tmp_path)) == 0
