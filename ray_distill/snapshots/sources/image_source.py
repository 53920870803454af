"""Read images from folders, whose names are their classes."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.rows import Reason, Rows, reasons
from ray_distill.snapshots.sources.columns import InputColumn
from ray_distill.snapshots.sources.resolve import SourceFile
from ray_distill.storage.files import read_many

_BATCH_FILES = 256


def read_images(files: Sequence[SourceFile], first: int, mapping: Mapping[str, str], column: InputColumn) -> Rows:
    """Read image files as rows: the input (large_binary) and ``label``, the folder's name.

    Args:
        files: image files, one a row.
        first: source index of the first file; the others follow.
        mapping: snapshot columns to read.
        column: the column of the inputs; larger files are not read.

    Raises:
        SnapshotError: a column that folders of images cannot have.
    """
    impossible = sorted(set(mapping) - {column.name, "label"})
    if impossible:
        raise SnapshotError(
            f"{files[0].name}: a folder of images has only images and their folders' names, so no "
            f"{', '.join(impossible)}: unset snapshot.columns.{impossible[0]}, or use Parquet with an image column"
        )
    labels = pa.array([file.folder for file in files], pa.large_string())
    return Rows(
        table=pa.table({column.name: _read(files, column.largest), "label": labels}),
        why=reasons(np.array([file.size > column.largest for file in files]), Reason.HUGE_CELL),
        source=np.arange(first, first + len(files), dtype=np.int32),
        record=np.ones(len(files), dtype=np.int64),
    )


def _read(files: Sequence[SourceFile], largest: int) -> pa.ChunkedArray:
    batches = (files[at : at + _BATCH_FILES] for at in range(0, len(files), _BATCH_FILES))
    return pa.chunked_array([_read_batch(batch, largest) for batch in batches])


def _read_batch(files: Sequence[SourceFile], largest: int) -> pa.Array:
    data = iter(read_many([file.url for file in files if file.size <= largest]))
    return pa.array([next(data) if file.size <= largest else None for file in files], pa.large_binary())
