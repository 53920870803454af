"""A writing run that dies anywhere, resumed, ends in the snapshot of an undisturbed run, and writes nothing twice."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_distill.config import SequencesConfig
from ray_distill.sequences.derive import Derived, derive
from ray_distill.sequences.generator import Generator
from ray_distill.sequences.store import create_or_open, prompt_ids
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.storage import files
from ray_distill.storage.files import list_files
from ray_distill.testing import crashfs
from ray_distill.testing.crashfs import Crash
from ray_distill.testing.sequences import fake_author, fake_generator, prompts_snapshot, write_all

GENERATOR = fake_generator()
SETTINGS = SequencesConfig(method="sample", candidates=2)
#: Few prompts, so that a run has few operations.
TEXTS = ["bad!", *(f"row {n}" for n in range(19))]


def _run(url: str, parent: Snapshot, author: Any = fake_author) -> Derived:
    store = write_all(f"{url}/written", GENERATOR, parent, author, unit_rows=4)
    return derive(parent, store, SETTINGS, url=f"{url}/snapshots", shard_rows=4)


def _throwing(rows: pa.Table, generator: Generator) -> pa.Table:
    raise AssertionError(f"{len(rows)} prompts were written twice")


def _check(url: str, parent: Snapshot, whole: dict[str, bytes]) -> None:
    """The snapshot's bytes, each prompt in one committed unit, and nothing left to write."""
    folder = url.removeprefix("crash://")
    assert {item.name: files.read_bytes(item.url) for item in list_files(f"{folder}/snapshots")} == whole
    store = create_or_open(f"{url}/written", GENERATOR)
    store.log.refresh()
    named = [entry["unit"] for record in store.log.records for entry in record["units"]]
    assert len(named) == len(set(named)) == len(store.ledger)
    prompts = [row for table in store._tables() for row in set(table["row_id"].to_pylist())]
    assert set(Counter(prompts).values()) == {1}
    assert len(prompts) == len(prompt_ids(parent, SETTINGS.splits))
    _run(url, parent, _throwing)


@pytest.mark.parametrize(
    ("scheme", "crashing", "every"),
    [
        pytest.param("crash://", crashfs.crashing_remote, 10, id="some"),
        pytest.param("crash://", crashfs.crashing_remote, 1, id="remote", marks=pytest.mark.crash),
        pytest.param("", crashfs.crashing_disk, 1, id="disk", marks=pytest.mark.crash),
    ],
)
def test_death_at_any_point_of_writing(tmp_path: Path, scheme: str, crashing: Callable[..., Any], every: int) -> None:
    """Before, amid and after each operation of store, log and snapshot: the rerun writes what is missing, no more."""
    parent = prompts_snapshot(tmp_path / "parent", TEXTS)
    _run(f"{scheme}{tmp_path}/whole", parent)
    whole = {item.name: files.read_bytes(item.url) for item in list_files(f"{tmp_path}/whole/snapshots")}
    assert open_snapshot(str(tmp_path / "whole" / "snapshots" / next(iter(whole)).split("/")[0])).manifest.derived
    _check(f"{scheme}{tmp_path}/whole", parent, whole)
    count = crashfs.points(crashing, lambda: _run(f"{scheme}{tmp_path}/count", parent))
    assert count >= 20
    for at, way in crashfs.cut_points(count)[::every]:
        url = f"{scheme}{tmp_path}/{at}-{way}"
        with crashing(at, way), pytest.raises(Crash):
            _run(url, parent)
        _run(url, parent)
        _check(url, parent, whole)


def test_a_death_costs_only_what_was_not_committed(tmp_path: Path) -> None:
    """What the log names is not written again: the rerun asks for the prompts of the other units alone."""
    parent, asked = prompts_snapshot(tmp_path / "parent", TEXTS), Counter[bytes]()

    def author(rows: pa.Table, generator: Generator) -> pa.Table:
        asked.update(rows["row_id"].to_pylist())
        if len(asked) > 8 and not died:
            died.append(True)
            raise Crash("killed amid a unit")
        return fake_author(rows, generator)

    died: list[bool] = []
    with pytest.raises(Crash):
        _run(f"{tmp_path}/out", parent, author)
    store = create_or_open(f"{tmp_path}/out/written", GENERATOR)
    store.log.refresh()
    committed = {row for table in store._tables() for row in table["row_id"].to_pylist()}
    prompts = {row for split in SETTINGS.splits for row in parent.read(split)["row_id"].to_pylist()}
    assert committed and committed < set(asked) <= prompts
    _run(f"{tmp_path}/out", parent, author)
    assert set(asked) == prompts
    assert all(asked[row] == 1 for row in committed)
