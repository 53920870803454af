"""Make the views of train rows, chunk by chunk, in the order of the rows' ids."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.snapshots.augment.draw import PARTNERS, chances, kind_at, partner
from ray_distill.snapshots.augment.kinds import Chosen
from ray_distill.snapshots.identity import ROW_ID_BYTES, row_id

#: The split whose rows get views: the others measure, and must consist of real inputs.
SPLIT = "train"
#: Columns of that split in addition to its parent's; null in rows that are not views.
COLUMNS = {
    "view_parent": pa.binary(ROW_ID_BYTES),
    "view_number": pa.int32(),
    "view_kind": pa.string(),
    "view_partner": pa.binary(ROW_ID_BYTES),
}
PARENT, PARTNER = "view_parent", "view_partner"

#: ``[N]`` of dtype S16, ascending.
SortedIds = npt.NDArray[np.bytes_]

#: Why a view is left out.
NO_CHANGE, ELSEWHERE, EQUAL = "unchanged", "equal to a row of another split", "equal to another train row or view"


@dataclass(frozen=True, kw_only=True)
class ViewMaker:
    """Makes the views of one snapshot's train rows, and counts those that are left out."""

    column: str
    """The column of the inputs."""
    chosen: Sequence[Chosen]
    """The kinds, in the order of their names."""
    views: int
    """Views a row."""
    seed: int
    elsewhere: SortedIds
    """Ids of the rows of all other splits."""
    left_out: Counter[str] = field(default_factory=Counter)

    def make(self, chunks: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yield each chunk of rows and its views, both with `COLUMNS`.

        Args:
            chunks: all train rows, ascending by id; no more than two chunks and `PARTNERS` rows are in memory.
        """
        mixes = any(one.kind.mixes for one in self.chosen)
        with ThreadPoolExecutor(thread_name_prefix="views") as pool:
            for chunk, followers in with_followers(chunks, PARTNERS if mixes else 0):
                yield _without_views(chunk), self._views(chunk, followers, pool)

    def _views(self, chunk: pa.Table, followers: pa.Table, pool: ThreadPoolExecutor) -> pa.Table:
        both = pa.concat_tables([chunk, followers])
        ids, inputs = both["row_id"].to_pylist(), _as_bytes(both[self.column])
        jobs = [(row, number) for row in range(len(chunk)) for number in range(self.views)]
        made = pool.map(lambda job: self._view(job[0], job[1], ids, inputs), jobs)
        named = [
            (row, number, row_id(view.data, self.column), view)
            for (row, number), view in zip(jobs, made, strict=True)
            if view is not None
        ]
        changed = [one for one in named if one[2] != ids[one[0]]]
        new = ~is_in(as_ids([one[2] for one in changed]), self.elsewhere)
        self.left_out[NO_CHANGE] += len(jobs) - len(changed)
        self.left_out[ELSEWHERE] += int((~new).sum())
        return self._table(chunk, ids, [one for one, good in zip(changed, new, strict=True) if good])

    def _view(self, row: int, number: int, ids: Sequence[bytes], inputs: Sequence[bytes]) -> "_View | None":
        chosen = self.chosen[kind_at(self.seed, ids[row], number, kinds=len(self.chosen))]
        sources, other = [inputs[row]], None
        if chosen.kind.mixes:
            near = range(row + 1, min(row + 1 + PARTNERS, len(ids)))
            candidates = [at for at in near if ids[at] != ids[row]]
            if not candidates:
                return None
            other = candidates[partner(self.seed, ids[row], number, [ids[at] for at in candidates])]
            sources.append(inputs[other])
        data = chosen.kind.change(sources, chosen.strength, chances(self.seed, ids[row], number))
        return None if data is None else _View(data=data, chosen=chosen, other=other)

    def _table(
        self, chunk: pa.Table, ids: Sequence[bytes], kept: Sequence[tuple[int, int, bytes, "_View"]]
    ) -> pa.Table:
        rows, numbers, found, views = (list(column) for column in zip(*kept, strict=True)) if kept else ([],) * 4
        parents, column = chunk.take(pa.array(rows, pa.int64())), chunk.schema.field(self.column)
        unknown = [view.other is not None or not view.chosen.kind.keeps_label for view in views]
        labels = parents["label"].combine_chunks()
        own = {
            "row_id": pa.array(found, pa.binary(ROW_ID_BYTES)),
            self.column: pa.array([view.data for view in views], pa.large_binary()).cast(_large(column.type)),
            "label": pc.if_else(pa.array(unknown, pa.bool_()), pa.scalar(None, labels.type), labels),
        }
        own[self.column] = own[self.column].cast(column.type)
        values = [own.get(name, parents[name]) for name in chunk.column_names]
        values += [
            pa.array([ids[row] for row in rows], COLUMNS[PARENT]),
            pa.array(numbers, COLUMNS["view_number"]),
            pa.array([view.chosen.name for view in views], COLUMNS["view_kind"]),
            pa.array([None if view.other is None else ids[view.other] for view in views], COLUMNS[PARTNER]),
        ]
        return pa.table(values, schema=with_columns(chunk.schema))


@dataclass(frozen=True, kw_only=True)
class _View:
    """The input of a view."""

    data: bytes
    chosen: Chosen
    other: int | None
    """Place of its partner."""


def as_ids(ids: Sequence[bytes]) -> SortedIds:
    """Return row ids as a numpy array, in their order."""
    return np.frombuffer(b"".join(ids), dtype=f"S{ROW_ID_BYTES}")


def is_in(ids: SortedIds, ascending: SortedIds) -> npt.NDArray[np.bool_]:
    """Return which of the ids stand in ``ascending``."""
    if not len(ascending):
        return np.zeros(len(ids), dtype=np.bool_)
    at = np.minimum(np.searchsorted(ascending, ids), len(ascending) - 1)
    found: npt.NDArray[np.bool_] = ascending[at] == ids
    return found


def with_columns(schema: pa.Schema) -> pa.Schema:
    """Return the schema of rows beside views."""
    return pa.schema([*schema, *(pa.field(name, kind) for name, kind in COLUMNS.items())])


def _without_views(chunk: pa.Table) -> pa.Table:
    nulls = [pa.nulls(len(chunk), kind) for kind in COLUMNS.values()]
    return pa.table([*chunk.columns, *nulls], schema=with_columns(chunk.schema))


def _as_bytes(column: pa.ChunkedArray) -> list[bytes]:
    found: list[bytes] = column.cast(pa.large_binary()).to_pylist()
    return found


def _large(kind: pa.DataType) -> pa.DataType:
    return pa.large_string() if pa.types.is_string(kind) else kind


def with_followers(chunks: Iterable[pa.Table], most: int) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield each chunk with the rows that follow it, ``most`` of them, cyclically.

    With fewer rows in all, rows come again.
    """
    head: list[pa.Table] = []
    waiting: list[pa.Table] = []
    for chunk in chunks:
        if _rows(head) < most:
            head.append(chunk.slice(0, most - _rows(head)))
        waiting.append(chunk)
        while _rows(waiting[1:]) >= most and len(waiting) > 1:
            yield waiting[0], _first(waiting[0].schema, waiting[1:], most)
            waiting = waiting[1:]
    while waiting:
        yield waiting[0], _first(waiting[0].schema, [*waiting[1:], *head], most)
        waiting = waiting[1:]


def _rows(tables: Sequence[pa.Table]) -> int:
    return sum(len(table) for table in tables)


def _first(schema: pa.Schema, tables: Sequence[pa.Table], most: int) -> pa.Table:
    found: list[pa.Table] = [schema.empty_table()]
    for table in tables:
        found.append(table.slice(0, most - _rows(found)))
    return pa.concat_tables(found)
