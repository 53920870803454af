"""Build, check and encode the table of sequences that a teacher wrote for one unit.

row_id fixed_size_binary(16)   id of the prompt's row
candidate int32                0 … n-1; null if the prompt got no sequence
text string                    the generated text, without special tokens
tokens int32                   number of generated tokens, including the end token
log_probability double         sum over these tokens, by the teacher at temperature 1, nats
ended bool                     false: truncated at `new_tokens`
same_tokens bool               whether tokenizing the text for labelling gives exactly the generated tokens
reason string                  why the prompt got no sequence; else null
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
    """Build the rows of prompts without a sequence, each with its reason."""
    found = {name: pa.nulls(len(rejected), kind) for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True)}
    found["row_id"] = pa.array([row for row, _ in rejected], ROW_ID)
    found["reason"] = pa.array([reason for _, reason in rejected], pa.string())
    return pa.table(found, schema=SCHEMA)


def ordered(parts: Sequence[pa.Table]) -> pa.Table:
    """Concatenate tables and sort the rows by prompt, then by candidate."""
    table = pa.concat_tables([SCHEMA.empty_table(), *parts])
    order = pc.sort_indices(table, sort_keys=[("row_id", "ascending"), ("candidate", "ascending")])
    return table.take(order).combine_chunks()


def answered(table: pa.Table) -> pa.Table:
    """Return the rows with a sequence."""
    return table.filter(pc.is_null(table["reason"]))


def unanswered(table: pa.Table) -> pa.Table:
    """Return the rows of prompts without a sequence."""
    return table.filter(pc.is_valid(table["reason"]))


def require_candidates(table: pa.Table, candidates: int, where: str) -> None:
    """Require for every prompt all its sequences, numbered from 0, or one reason.

    Raises:
        LabelError: a prompt has neither.
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
            f"{where}: prompt {min([*wrong, *twice])} must have {candidates} sequences or one reason, but "
            "has others: pass the rows of each prompt once"
        )


def read_ids(source: Any, name: str) -> pa.Table:
    """Read ``row_id`` and ``reason`` of an attempt, not its texts; the digest is not checked.

    Args:
        source: a seekable file object.
        name: the file's URL, for messages.

    Raises:
        CorruptStore: the file is not an attempt.
    """
    try:
        return pq.read_table(source, columns=["row_id", "reason"])
    except (pa.ArrowException, KeyError, OSError) as error:
        raise CorruptStore(f"{name}: its row ids cannot be read ({error}); restore the file") from error


def encode(table: pa.Table) -> bytes:
    """Encode one attempt as bytes; equal tables give equal bytes."""
    return parquet_shards.to_parquet(table)


def decode(data: bytes, name: str) -> pa.Table:
    """Decode the table of one attempt.

    Raises:
        CorruptStore: the bytes are not an attempt; the message names the file.
    """
    table = parquet_shards.from_parquet(data, name)
    if table.schema.remove_metadata() != SCHEMA:
        raise CorruptStore(
            f"{name}: found the columns {', '.join(table.column_names)}, expected "
            f"{', '.join(SCHEMA.names)}; restore the file"
        )
    return table
