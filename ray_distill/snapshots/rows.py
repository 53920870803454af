"""Rows of a source: Arrow columns, origin, and the reasons of unusable rows.

A record that cannot even be read is a row of nulls with a reason, so every record of the input is accounted
for: read = kept + merged + excluded + dropped + quarantined.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.errors import SnapshotError

Mask = npt.NDArray[np.bool_]
#: ``[N]``: a `Reason` a row; 0 for usable rows
Why = npt.NDArray[np.int8]


class Reason(IntEnum):
    """Why a row is in quarantine; 0 means it is not."""

    NONE = 0
    MISSING_TEXT = 1
    MISSING_IMAGE = 2
    UNDECODABLE_IMAGE = 3
    HUGE_IMAGE = 4
    UNKNOWN_LABEL = 5
    NOT_UTF8 = 6
    MALFORMED_JSON = 7
    MALFORMED_CSV = 8
    WRONG_TYPE = 9
    UNREADABLE_TIME = 10
    MISSING_TIME = 11
    LABEL_LIST = 12
    LABEL_NOT_LIST = 13
    REPEATED_LABEL = 14
    MISSING_INPUT = 15
    IMAGE_RANGE = 16
    IMAGE_STRIP = 17
    REPEATED_HEADER = 18
    HUGE_CELL = 19

    @property
    def text(self) -> str:
        """The reason in words, as manifests and messages show it."""
        return _TEXTS[self]

    @property
    def advice(self) -> str:
        """How to mend such rows, beside mending the source; empty where nothing is known."""
        return _ADVICE.get(self, "")


_TEXTS = {
    Reason.NONE: "usable",
    Reason.MISSING_TEXT: "missing text",
    Reason.MISSING_IMAGE: "missing image",
    Reason.UNDECODABLE_IMAGE: "undecodable image",
    Reason.HUGE_IMAGE: "image too large",
    Reason.UNKNOWN_LABEL: "unknown label",
    Reason.NOT_UTF8: "not UTF-8",
    Reason.MALFORMED_JSON: "malformed JSON",
    Reason.MALFORMED_CSV: "malformed CSV record",
    Reason.WRONG_TYPE: "wrong type",
    Reason.UNREADABLE_TIME: "unreadable time",
    Reason.MISSING_TIME: "missing time",
    Reason.LABEL_LIST: "label is a list",
    Reason.LABEL_NOT_LIST: "label is not a list",
    Reason.REPEATED_LABEL: "label repeated",
    Reason.MISSING_INPUT: "missing input",
    Reason.IMAGE_RANGE: "image without a known range of values",
    Reason.IMAGE_STRIP: "image is a strip",
    Reason.REPEATED_HEADER: "header repeated",
    Reason.HUGE_CELL: "cell too large",
}

QUARANTINE_SCHEMA = pa.schema([("source", pa.string()), ("row", pa.int64()), ("reason", pa.string())])

_PLACES_SHOWN = 3
#: How to mend rows of a reason, beside "mend the source".
_ADVICE = {
    Reason.NOT_UTF8: "save the source as UTF-8 (in Excel 'CSV UTF-8'; `iconv -f WINDOWS-1252 -t UTF-8`)",
    Reason.IMAGE_RANGE: "convert such images to 8 bits, or scale 16 bits to 0 … 65535 and floats to 0 … 1 (files with "
    "12 bits in 16, with 32 bits or with other floats do not state their range)",
    Reason.MALFORMED_CSV: "write the source with quoted fields, or as Parquet",
    Reason.MALFORMED_JSON: "write one object a line, without a comma at its end, keys and texts in double quotes",
    Reason.HUGE_CELL: "split such inputs, or raise snapshot.max_cell_bytes (a row group of Parquet that must have "
    "such a cell, or unpacks to over snapshot.max_expansion times its size, is counted whole: write smaller ones, or "
    "raise that)",
    Reason.UNREADABLE_TIME: "write times as 2026-01-31T10:00:00Z, or as seconds since 1970 (not milliseconds)",
}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """N rows: their columns by output name, their places, and why they cannot be used."""

    table: pa.Table
    why: Why
    source: npt.NDArray[np.int32]
    """``[N]``: index of the source file"""
    record: npt.NDArray[np.int64]
    """``[N]``: record in its file, from 1; a header and blank lines are not counted"""

    def __len__(self) -> int:
        return len(self.why)

    def mark(self, mask: Mask, reason: Reason) -> "Rows":
        """Give ``reason`` to the masked rows that have none yet."""
        return self.mark_each(reasons(mask, reason))

    def mark_each(self, why: Why) -> "Rows":
        """Give each row its reason of ``why`` ``[N]`` if it has none yet."""
        return replace(self, why=np.where(self.why == 0, why, self.why))

    def with_labels(self, labels: pa.Array) -> "Rows":
        """Return the same rows with another column ``label``."""
        at = self.table.column_names.index("label")
        return replace(self, table=self.table.set_column(at, "label", labels))

    def filter(self, mask: Mask) -> "Rows":
        """Keep the masked rows, in order."""
        return Rows(
            table=self.table.filter(pa.array(mask)),
            why=self.why[mask],
            source=self.source[mask],
            record=self.record[mask],
        )


def reasons(bad: Mask, reason: Reason) -> Why:
    """Return the reason for the masked rows, 0 for the others."""
    return np.where(bad, np.int8(reason), np.int8(0))


def file_rows(table: pa.Table, why: Why, source: int) -> Rows:
    """Return rows of one whole file, numbered from 1."""
    rows = len(why)
    return Rows(
        table=table,
        why=why,
        source=np.full(rows, source, dtype=np.int32),
        record=np.arange(1, rows + 1, dtype=np.int64),
    )


def concat_rows(parts: Sequence[Rows]) -> Rows:
    """Join all rows in order, as one chunk a column; the parts have the same columns."""
    return Rows(
        table=pa.concat_tables([part.table for part in parts]).combine_chunks(),
        why=np.concatenate([part.why for part in parts]),
        source=np.concatenate([part.source for part in parts]),
        record=np.concatenate([part.record for part in parts]),
    )


def count_reasons(why: Why) -> dict[str, int]:
    """Count unusable rows by reason, the commonest first."""
    counts = np.bincount(why, minlength=len(Reason))
    found = sorted((reason for reason in Reason if reason and counts[reason]), key=lambda r: (-counts[r], r))
    return {reason.text: int(counts[reason]) for reason in found}


def quarantine_table(rows: Rows, names: Sequence[str]) -> pa.Table:
    """Return origin and reason of unusable rows, without their content (which may be private)."""
    bad = np.flatnonzero(rows.why)
    return pa.table(
        [
            pa.array([names[index] for index in rows.source[bad]], pa.string()),
            pa.array(rows.record[bad]),
            pa.array([Reason(code).text for code in rows.why[bad]], pa.string()),
        ],
        schema=QUARANTINE_SCHEMA,
    )


def check_bad_fraction(rows: Rows, names: Sequence[str], limit: float, what: str, *, more: str = "") -> None:
    """Stop when too many rows are unusable, before anything is written or spent.

    Args:
        rows: all rows that were read.
        names: source files.
        limit: largest accepted share of unusable rows.
        what: name of the sources in the message.
        more: further details for the message.

    Raises:
        SnapshotError: how many of how many, by reason, and the first places.
    """
    bad = np.flatnonzero(rows.why)
    if not len(bad) or len(bad) <= limit * len(rows):
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in count_reasons(rows.why).items())
    places = "; ".join(
        f"{names[rows.source[i]]} row {rows.record[i]} ({Reason(rows.why[i]).text})" for i in bad[:_PLACES_SHOWN]
    )
    raise SnapshotError(
        f"{len(bad)} of {len(rows)} rows of the {what} cannot be used ({len(bad) / len(rows):.1%}; "
        f"max_bad_fraction allows {limit:.1%}): {reasons}. First: {places}. {more + ' ' if more else ''}Mend the "
        f"source, or raise snapshot.max_bad_fraction{_advice(rows)}"
    )


def _advice(rows: Rows) -> str:
    commonest = Reason(int(np.bincount(rows.why[rows.why != 0]).argmax()))
    return f"; {_ADVICE[commonest]}" if commonest in _ADVICE else ""
