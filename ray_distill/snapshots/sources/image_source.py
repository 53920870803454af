"""Read images from folders, whose names are their classes."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.rows import Rows
from ray_distill.snapshots.sources.resolve import SourceFile
from ray_distill.storage.files import read_many

_BATCH_FILES = 256


def read_images(files: Sequence[SourceFile], first: int, mapping: Mapping[str, str], column: str) -> Rows:
    """Read image files as rows: the input (large_binary) and ``label``, the folder's name.

    Args:
        files: image files, one a row.
        first: source index of the first file; the others follow.
        mapping: snapshot columns to read.
        column: the snapshot column of the input.

    Raises:
        SnapshotError: a column that folders of images cannot have.
    """
    impossible = sorted(set(mapping) - {column, "label"})
    if impossible:
        raise SnapshotError(
            f"{files[0].name}: a folder of images has only images and their folders' names, so no "
            f"{', '.join(impossible)}: unset snapshot.columns.{impossible[0]}, or use Parquet with an image column"
        )
    labels = pa.array([file.folder for file in files], pa.large_string())
    return Rows(
        table=pa.table({column: _read(files), "label": labels}),
        why=np.zeros(len(files), dtype=np.int8),
        source=np.arange(first, first + len(files), dtype=np.int32),
        record=np.ones(len(files), dtype=np.int64),
    )


def _read(files: Sequence[SourceFile]) -> pa.ChunkedArray:
    urls = [file.url for file in files]
    batches = (urls[at : at + _BATCH_FILES] for at in range(0, len(urls), _BATCH_FILES))
    return pa.chunked_array([pa.array(read_many(batch), pa.large_binary()) for batch in batches])
