"""What a teacher wrote for the prompts of one unit, as a table and as the bytes of one file.

row_id fixed_size_binary(16)   the prompt's
candidate int32                0 … n-1; null where the prompt got no answer
text string                    what was written, without special tokens
tokens int32                   how many were written, the one that ended it included
log_probability double         of all of them, by the teacher at temperature 1, nats
ended bool                     false: cut off at `new_tokens`
same_tokens bool               whether the text, when it is labelled, has the very tokens that were written
reason string                  why the prompt got no answer; else null
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_distill.errors import CorruptStore, LabelError
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.model.rowids import ROW_ID
from ray_distill.labels.model.validity import Rejects

SCHEMA = pa.schema(
    [
        ("row_id", ROW_ID),
        ("candidate", pa.int32()),
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("log_probability", pa.float64()),
        ("ended", pa.bool_()),
        ("same_tokens", pa.bool_()),
        ("reason", pa.string()),
    ]
)


def rejected_table(rejected: Rejects) -> pa.Table:
    """Prompts without an answer, each with the reason."""
    found = {name: pa.nulls(len(rejected), kind) for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True)}
    found["row_id"] = pa.array([row for row, _ in rejected], ROW_ID)
    found["reason"] = pa.array([reason for _, reason in rejected], pa.string())
    return pa.table(found, schema=SCHEMA)


def ordered(parts: Sequence[pa.Table]) -> pa.Table:
    """All rows by prompt, then by candidate, whatever order they were written in."""
    table = pa.concat_tables([SCHEMA.empty_table(), *parts])
    order = pc.sort_indices(table, sort_keys=[("row_id", "ascending"), ("candidate", "ascending")])
    return table.take(order).combine_chunks()


def answered(table: pa.Table) -> pa.Table:
    """The rows that hold a sequence."""
    return table.filter(pc.is_null(table["reason"]))


def unanswered(table: pa.Table) -> pa.Table:
    """The rows of prompts without an answer."""
    return table.filter(pc.is_valid(table["reason"]))


def require_candidates(table: pa.Table, candidates: int, where: str) -> None:
    """Every prompt has as many sequences as were asked for, numbered from 0, or one reason.

    Raises:
        LabelError: one has not.
    """
    found = answered(table)
    lists = found.group_by("row_id").aggregate([("candidate", "list")])
    wrong = [
        row.hex()
        for row, numbers in zip(lists["row_id"].to_pylist(), lists["candidate_list"].to_pylist(), strict=True)
        if sorted(numbers) != list(range(candidates))
    ]
    rows = [*lists["row_id"].to_pylist(), *unanswered(table)["row_id"].to_pylist()]
    twice = {row.hex() for row in rows if rows.count(row) > 1} if len(set(rows)) < len(rows) else set()
    if wrong or twice:
        raise LabelError(
            f"{where}: prompt {min([*wrong, *twice])} must have {candidates} sequences or one reason, and "
            "has others: hand over each prompt's own, once"
        )


def read_ids(source: Any, name: str) -> pa.Table:
    """``row_id`` and ``reason`` of an attempt, without the texts; the digest is not checked.

    Args:
        source: a seekable file object.
        name: the file's URL, for messages.

    Raises:
        CorruptStore: it is no attempt.
    """
    try:
        return pq.read_table(source, columns=["row_id", "reason"])
    except (pa.ArrowException, KeyError, OSError) as error:
        raise CorruptStore(f"{name}: its row ids cannot be read ({error}); restore the file") from error


def encode(table: pa.Table) -> bytes:
    """The bytes of one attempt; equal tables give equal bytes."""
    return parquet_shards.to_parquet(table)


def decode(data: bytes, name: str) -> pa.Table:
    """The table of one attempt.

    Raises:
        CorruptStore: it is none; names the file.
    """
    table = parquet_shards.from_parquet(data, name)
    if table.schema.remove_metadata() != SCHEMA:
        raise CorruptStore(
            f"{name}: found the columns {', '.join(table.column_names)}, expected "
            f"{', '.join(SCHEMA.names)}; restore the file"
        )
    return table
