"""Read source files into rows: each format's reader, then the same checks for all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.label_reading.truth import TRUTHS, TruthKind
from ray_distill.snapshots.manifest import Truth
from ray_distill.snapshots.pairs import pair_texts
from ray_distill.snapshots.rows import Mask, Reason, Rows, Why, concat_rows, file_rows, reasons
from ray_distill.snapshots.sources.budget import ROW_BYTES, Budget, spend_rows
from ray_distill.snapshots.sources.columns import BESIDE, InputColumn, columns_beside, require_columns, without_huge
from ray_distill.snapshots.sources.convert import to_bytes, to_text, to_time
from ray_distill.snapshots.sources.csv_source import read_csv
from ray_distill.snapshots.sources.file_bytes import read_records, restore_advice
from ray_distill.snapshots.sources.image_source import read_images
from ray_distill.snapshots.sources.json_document import document_to_lines
from ray_distill.snapshots.sources.json_source import read_jsonl
from ray_distill.snapshots.sources.nested import column_to_json, is_nested, join_beside
from ray_distill.snapshots.sources.parquet_source import read_groups
from ray_distill.snapshots.sources.resolve import SourceFile, partitions_of
from ray_distill.storage.files import open_input
from ray_distill.storage.remote import protocol

#: Rows of a file that are read to see whether it has the expected form.
_HEADS = 50
#: (source column, its name) -> the snapshot's column, and a reason for each row that could not be converted
Converter = Callable[[pa.ChunkedArray, str], tuple[pa.Array, Why]]


def read_rows(
    files: Sequence[SourceFile], mapping: Mapping[str, str], column: InputColumn, truth: Truth = "class"
) -> Rows:
    """Read all files, in order, as rows of one schema.

    Columns: the input (large_string, large_binary if binary), ``label`` always (large_string, for sets of classes lists
    of it), and the others that ``mapping`` names: ``time`` in UTC microseconds, the rest large_string with empty texts
    as null. Rows that cannot be used are there too, marked. A ``target`` in ``mapping`` is not a column of its own: the
    input is then a source with its target (`pairs`).

    Raises:
        SnapshotError: a file is damaged, has another format or lacks a column.
        StorageError: a file cannot be read.
    """
    parts: list[Rows] = []
    keys: set[str] = set()
    stored = sum(file.size for file in files)
    budget = Budget(stored=stored, largest=column.largest, ratio=column.expansion)
    json_lines = False
    for (kind, _), run in groupby(enumerate(files), key=lambda item: (item[1].format, protocol(item[1].url))):
        indexed = list(run)
        if kind == "images":
            parts.append(_read_images(indexed, mapping, column, truth, budget=budget))
            continue
        for index, file in indexed:
            before = budget.spent
            rows, found = _read_table(file, index, mapping, column, sets=truth == "classes", budget=budget)
            parts.append(_normalise(rows, mapping, column, TRUTHS[truth], where=file.name))
            budget.keep(before, parts[-1].table.nbytes + ROW_BYTES * len(rows))
            json_lines |= file.format == "jsonl"
            keys |= found
    if json_lines and not (not keys and any((part.why == Reason.HUGE_CELL).any() for part in parts)):
        _refuse_no_objects(files, keys, replace(budget, spent=0))
        require_columns(mapping, sorted(keys), "the JSON Lines source, in any line,")
    return concat_rows(parts)


def _refuse_no_objects(files: Sequence[SourceFile], keys: set[str], budget: Budget) -> None:
    """Refuse JSON Lines without one object, by the first line of the first file."""
    first = next(file for file in files if file.format == "jsonl")
    line = next(filter(None, map(bytes.strip, read_records(first, budget).splitlines())), b"") if not keys else b""
    if line:
        why = (
            "its lines end with commas"
            if line.endswith(b",")
            else "its keys are in single quotes"
            if line.startswith(b"{'")
            else "its first line is not one"
        )
        raise SnapshotError(f"{first.name} has no JSON object in any line: {why}; {Reason.MALFORMED_JSON.advice}")


def _read_images(
    indexed: list[tuple[int, SourceFile]],
    mapping: Mapping[str, str],
    column: InputColumn,
    truth: Truth,
    *,
    budget: Budget,
) -> Rows:
    first, file = indexed[0]
    if not column.binary:
        raise SnapshotError(f"{file.name} is an image, but this task reads {column.name}: check snapshot.source")
    read = [item.size for _, item in indexed if item.size <= column.largest]
    budget.spend(sum(read) + ROW_BYTES * len(indexed), file.name)
    rows = read_images([item for _, item in indexed], first, mapping, column)
    return _normalise(rows, mapping, column, TRUTHS[truth], where=file.name)


def _read_table(
    file: SourceFile, index: int, mapping: Mapping[str, str], column: InputColumn, *, sets: bool, budget: Budget
) -> tuple[Rows, set[str]]:
    """Read the rows of one table and the names of its columns."""
    if file.format == "parquet":
        rows = _read_parquet(file, mapping, index, column=column, budget=budget)
        return rows, set(mapping.values())
    if column.binary:
        raise SnapshotError(
            f"{file.name}: {column.name}s are read from folders or from Parquet, found {file.format}: convert "
            "the source"
        )
    data = read_records(file, budget)
    if file.format == "csv":
        spend_rows(data, budget, file.name)
        return read_csv(data, mapping, index, column, where=file.name), set(mapping.values())
    strict = ".json" in PurePosixPath(file.url.lower()).suffixes
    data = document_to_lines(data, column=mapping[column.name], where=file.name, strict=strict, budget=budget)
    spend_rows(data, budget, file.name)
    rows, keys = read_jsonl(data, mapping, index, column, sets=sets)
    if (rows.why == 0).any():
        require_columns({column.name: mapping[column.name]}, sorted(keys), file.name, column.companions.forms)
    return rows, keys


def _read_parquet(
    file: SourceFile, mapping: Mapping[str, str], index: int, *, column: InputColumn, budget: Budget
) -> Rows:
    try:
        with open_input(file.url) as stream, pq.ParquetFile(stream) as parquet:
            names = parquet.schema_arrow.names
            folders = {name: text for name, text in partitions_of(file.url).items() if name not in names}
            require_columns(mapping, [*names, *folders], file.name, column.companions.forms)
            mapping = {**mapping, **columns_beside(column, names)}
            names = sorted(set(mapping.values()) - folders.keys())
            table, why = read_groups(stream, parquet, names, budget, where=file.name)
    except (pa.ArrowException, OSError) as error:
        raise SnapshotError(f"{file.name} cannot be read as Parquet ({error}): {restore_advice(file)}") from error
    for name in folders.keys() & mapping.values():
        table = table.append_column(name, pa.array([folders[name]] * len(table), pa.large_string()))
    table = pa.table({part: table.column(name) for part, name in mapping.items()})
    return file_rows(table, why, index)


def _normalise(rows: Rows, mapping: Mapping[str, str], column: InputColumn, truth: TruthKind, *, where: str) -> Rows:
    """Bring every column to its one type and mark the rows where that fails."""
    columns: dict[str, pa.Array] = {}
    for part, values in zip(rows.table.column_names, rows.table.columns, strict=True):
        name = mapping.get(part, part)
        values, huge = without_huge(values, column.largest)
        rows = rows if huge is None else rows.mark(huge, Reason.HUGE_CELL)
        try:
            found, why = _converter(part, column, truth)(values, name)
        except SnapshotError as error:
            raise SnapshotError(f"{where}: {error}") from error
        except pa.ArrowInvalid as error:
            raise SnapshotError(f"{where}: column {name!r} ({values.type}) cannot be converted: {error}") from error
        rows = rows.mark_each(why)
        columns[part] = found
        if is_nested(values.type):  # whose texts are known now alone
            whole, huge = without_huge(pa.chunked_array([found]), column.largest)
            columns[part] = pa.concat_arrays(whole.chunks)
            rows = rows if huge is None else rows.mark(huge, Reason.HUGE_CELL)
    if not column.binary:
        rows = rows.mark(_is_missing(columns[column.name]), Reason.MISSING_TEXT)
    beside = {part.removeprefix(BESIDE): columns.pop(part) for part in [*columns] if part.startswith(BESIDE)}
    if column.nested:
        columns[column.name], bad = join_beside(columns[column.name], beside, column.companions)
        rows = rows.mark(bad, Reason.WRONG_TYPE)
        _refuse_other_form(columns[column.name], column, f"{where}: column {mapping[column.name]!r}")
    if "target" in columns:
        columns[column.name] = pair_texts(columns[column.name], columns.pop("target"))
    columns.setdefault("label", pa.nulls(len(rows), truth.absent))
    order = [column.name, "label", *(part for part in mapping if part not in (column.name, "target", "label"))]
    table = pa.table({part: columns[part] for part in order})
    return Rows(table=table, why=rows.why, source=rows.source, record=rows.record)


def _refuse_other_form(texts: pa.Array, column: InputColumn, where: str) -> None:
    refuse, heads = column.companions.refuse, texts.drop_null().slice(0, _HEADS).to_pylist()
    reasons_found = [refuse(text) for text in heads] if refuse is not None else [None]
    if heads and all(reasons_found):
        raise SnapshotError(f"{where}: none of its first {len(heads)} rows can be read: {reasons_found[0]}")


def _converter(part: str, column: InputColumn, truth: TruthKind) -> Converter:
    """Return the function that converts one column."""
    if part == column.name:
        return _to_binary if column.binary else _to_nested if column.nested else _to_input
    if part.startswith(BESIDE):
        return _to_beside
    return {"label": truth.convert, "time": _to_time}.get(part, _to_other)


def _to_binary(values: pa.ChunkedArray, name: str) -> tuple[pa.Array, Why]:
    return to_bytes(values, name), np.zeros(len(values), dtype=np.int8)


def _to_input(values: pa.ChunkedArray, name: str) -> tuple[pa.Array, Why]:
    text, bad = to_text(values, name, numbers=False)
    return text, reasons(bad, Reason.NOT_UTF8)


def _to_nested(values: pa.ChunkedArray, name: str) -> tuple[pa.Array, Why]:
    if not is_nested(values.type):
        return _to_input(values, name)
    text, bad = column_to_json(values)
    return text, reasons(bad, Reason.WRONG_TYPE)


def _to_beside(values: pa.ChunkedArray, name: str) -> tuple[pa.Array, Why]:
    return _to_nested(values, name) if is_nested(values.type) else _to_other(values, name)


def _to_other(values: pa.ChunkedArray, name: str) -> tuple[pa.Array, Why]:
    text, bad = to_text(values, name)
    return pc.if_else(pc.equal(text, ""), None, text), reasons(bad, Reason.NOT_UTF8)


def _to_time(values: pa.ChunkedArray, name: str) -> tuple[pa.Array, Why]:
    time, bad = to_time(values, name)
    return time, reasons(bad, Reason.UNREADABLE_TIME)


def _is_missing(text: pa.Array) -> Mask:
    missing = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(text), ""), True)
    result: Mask = missing.to_numpy(zero_copy_only=False)
    return result
