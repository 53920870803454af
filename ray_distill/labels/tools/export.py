"""Export labels as plain Parquet for other tools: numbers in lists, one row a row."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_distill.errors import LabelError
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.signal import Vectors
from ray_distill.labels.model.work_units import Receipt
from ray_distill.labels.store.label_store import LabelStore, open_store
from ray_distill.labels.store.reader import read_hidden, read_labels
from ray_distill.storage import files


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The result of an export."""

    url: str
    files: int
    rows: int


def export_store(store_url: str, target: str, *, hidden: bool = False) -> Exported:
    """Write each committed unit of a store as one plain Parquet file.

    Every file is verified before it is copied.

    Columns: ``row_id`` as 32 hexadecimal digits; lists over positions ``position``, ``entropy`` (null where it is not
    known) and ``log_tail`` (a list a position, in the order of the temperatures); lists over positions of lists over
    entries ``ids``, ``logp``, where entries were drawn ``count``, and of Bernoulli classes ``log_odds``; with
    ``hidden`` a list of vectors ``hidden_<layer>``. The store's manifest goes along as ``manifest.json``.

    Raises:
        LabelError: there is no store, it is empty, or the target is not empty.
        CorruptStore: a file is not what the log promised.
    """
    store = open_store(store_url)
    store.log.refresh()
    if files.list_files(target):
        raise LabelError(f"{target} is not empty: export into a new folder, so that files of two stores never mix")
    count = rows = 0
    for unit in store.ledger.receipts():
        table = plain_table(store, unit, hidden=hidden)
        files.write_bytes(files.join(target, f"{unit.unit}.parquet"), parquet_shards.to_parquet(table))
        count, rows = count + 1, rows + table.num_rows
    if not count:
        raise LabelError(f"{store_url}: the store has no labels yet; label a snapshot first")
    files.write_json(files.join(target, "manifest.json"), store.manifest.to_dict())
    return Exported(url=files.absolute(target), files=count, rows=rows)


def plain_table(store: LabelStore, unit: Receipt, *, hidden: bool) -> pa.Table:
    """Return one unit as plain columns; see `export_store`."""
    ids, distributions = read_labels(store.url, store.manifest, unit)
    columns = {"row_id": pa.array(rowids.hexadecimal(ids), pa.string()), **_distribution_columns(distributions)}
    if hidden:
        columns |= {
            f"hidden_{layer}": _vectors(read_hidden(store.url, store.manifest, unit, layer)[1])
            for layer in store.manifest.hidden
        }
    return pa.table(columns)


def _distribution_columns(found: Distributions) -> dict[str, pa.Array]:
    rows = pa.array(found.row_offsets, pa.int64())
    entries, temperatures = pa.array(found.entry_offsets, pa.int64()), len(found.temperatures)
    tails = np.arange(len(found.position) + 1, dtype=np.int64) * temperatures

    def by_row(values: pa.Array) -> pa.Array:
        return pa.LargeListArray.from_arrays(rows, values)

    def by_position(values: pa.Array) -> pa.Array:
        return by_row(pa.LargeListArray.from_arrays(entries, values))

    drawn = {} if found.draws is None else {"count": by_position(pa.array(found.draws.count))}
    if found.log_odds is not None:
        drawn["log_odds"] = by_position(pa.array(found.log_odds))
    return {
        "position": by_row(pa.array(found.position)),
        "entropy": by_row(pa.array(found.entropy, from_pandas=True)),
        "log_tail": by_row(pa.LargeListArray.from_arrays(pa.array(tails), pa.array(found.log_tail.reshape(-1)))),
        "ids": by_position(pa.array(found.ids)),
        "logp": by_position(pa.array(found.logp)),
        **drawn,
    }


def _vectors(hidden: Vectors) -> pa.Array:
    width = hidden.values.shape[1]
    ends = np.arange(len(hidden.values) + 1, dtype=np.int64) * width
    vectors = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(np.ascontiguousarray(hidden.values).reshape(-1)))
    return pa.LargeListArray.from_arrays(pa.array(hidden.offsets, pa.int64()), vectors)
