"""Sort rows by id on disk: sorted runs in one Arrow file, merged range by range of ids.

Training reads rows in parts only if ids ascend over all shards, and the ids of views are hashes: a view may belong
anywhere.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_distill.snapshots.augment.views import SortedIds
from ray_distill.snapshots.identity import ROW_ID_BYTES

#: Bytes of rows that are sorted in memory at a time.
RUN_BYTES = 64 << 20


def sort_by_id(tables: Iterable[pa.Table], *, schema: pa.Schema, path: Path, ranges: int) -> Iterator[pa.Table]:
    """Yield all rows in ``ranges`` tables, each with the next range of ids, ascending.

    Ids are hashes, so that the tables have about equal sizes. Equal ids are in one table, in no order of their own.

    Args:
        tables: the rows, in any order; about `RUN_BYTES` of them and one of the results are in memory.
        schema: of every table.
        path: a file to be written, which takes the bytes of all rows.
        ranges: number of the results; some may be empty.
    """
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for run in _runs(tables):
            writer.write_table(_sorted(run), max_chunksize=len(run))
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        runs = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        ids = [_ids_of(run) for run in runs]
        places = [0] * len(runs)
        for number in range(ranges):
            stops = [len(own) if number + 1 == ranges else _below(own, number + 1, ranges) for own in ids]
            parts = [run.slice(at, stop - at) for run, at, stop in zip(runs, places, stops, strict=True) if stop > at]
            places = stops
            yield _sorted(pa.Table.from_batches(parts, schema))


def _runs(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join tables to parts of about `RUN_BYTES`."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(one.nbytes for one in waiting) >= RUN_BYTES:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _sorted(rows: pa.Table) -> pa.Table:
    return rows.take(pa.array(np.argsort(ids_of(rows), kind="stable"))).combine_chunks()


def ids_of(rows: pa.Table) -> SortedIds:
    """Return the column ``row_id``, in its order."""
    return np.concatenate([np.empty(0, f"S{ROW_ID_BYTES}"), *map(_ids_of, rows.to_batches())])


def _ids_of(rows: pa.RecordBatch) -> SortedIds:
    column = rows.column(rows.schema.get_field_index("row_id"))
    start = column.offset * ROW_ID_BYTES
    return np.frombuffer(column.buffers()[1], f"S{ROW_ID_BYTES}", count=len(column), offset=start)


def _below(ascending: SortedIds, part: int, ranges: int) -> int:
    """Return how many ids are below the end of a range."""
    bound = (part * 2 ** (8 * ROW_ID_BYTES) // ranges).to_bytes(ROW_ID_BYTES, "big")
    return int(np.searchsorted(ascending, np.frombuffer(bound, f"S{ROW_ID_BYTES}")[0]))
