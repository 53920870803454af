"""Write nested conversations as one JSON text a row: equal ones have equal ids."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ray_distill.snapshots.rows import Mask
from ray_distill.snapshots.sources.columns import Companions

#: A model's arguments and a schema are kept as they are: a null there has a meaning.
_VERBATIM = ("arguments", "parameters")


def is_nested(kind: pa.DataType) -> bool:
    """Return whether a column has lists or structs."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_struct(kind))


def canonical(value: Any, *, padded: bool) -> str:
    """Write JSON with sorted keys and no spaces; null keys are dropped.

    Args:
        value: lists and dicts of plain values.
        padded: nulls are left out below `_VERBATIM` too: a Parquet struct has all keys of all its rows.

    Raises:
        ValueError, TypeError: it has no JSON, or is not UTF-8.
    """
    text = json.dumps(_bare(value, padded), sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text.encode()
    return text


def column_to_json(column: pa.ChunkedArray) -> tuple[pa.Array, Mask]:
    """Return a nested column as large_string, and a mask of rows without JSON (null)."""
    texts: list[str | None] = []
    bad = np.zeros(len(column), dtype=bool)
    for row, item in enumerate(column):
        try:
            value = item.as_py()
            texts.append(None if value is None else canonical(value, padded=True))
        except (ValueError, TypeError):
            texts.append(None)
            bad[row] = True
    return pa.array(texts, pa.large_string()), bad


def join_beside(inputs: pa.Array, beside: Mapping[str, pa.Array], companions: Companions) -> tuple[pa.Array, Mask]:
    """Join each input with the values beside it, and mark the rows where they disagree (null).

    Args:
        inputs: JSON or other texts, large_string; a text that is not JSON is left as it is.
        beside: columns by name, JSON or other texts, as long as ``inputs``.
        companions: how the two become one.
    """
    if companions.assemble is None:
        return inputs, np.zeros(len(inputs), dtype=bool)
    columns = {name: column.to_pylist() for name, column in beside.items()}
    texts: list[str | None] = inputs.to_pylist()
    bad = np.zeros(len(texts), dtype=bool)
    for row, text in enumerate(texts):
        value = _parsed(text)
        if isinstance(value, list | dict):
            try:
                whole = companions.assemble(value, {name: _parsed(column[row]) for name, column in columns.items()})
                texts[row] = text if whole == value else canonical(whole, padded=False)
            except ValueError:
                texts[row], bad[row] = None, True
    return pa.array(texts, pa.large_string()), bad


def _parsed(text: str | None) -> Any:
    """Return the value of JSON; any other text as it is."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text


def _bare(value: Any, padded: bool) -> Any:
    if isinstance(value, list):
        return [_bare(item, padded) for item in value]
    if isinstance(value, dict):
        return {
            key: item if key in _VERBATIM and not padded else _bare(item, padded)
            for key, item in value.items()
            if item is not None
        }
    return value
