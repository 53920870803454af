"""Images: read from folders, and decoded once to see that they can be."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from PIL import Image

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.rows import Reason, Rows, Why
from ray_distill.snapshots.sources.resolve import SourceFile
from ray_distill.storage.files import read_many

#: Pillow's decoders for these are self-contained. (Others start programs: EPS starts Ghostscript.)
DECODERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

#: Errors that Pillow raises on malformed input, depending on the decoder.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    AttributeError,
    OverflowError,
    NotImplementedError,
    struct.error,
    zlib.error,
)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)
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


def check_images(images: pa.ChunkedArray) -> Why:
    """Return why images are not usable: missing, not decodable, or decompression bombs; else 0."""
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return np.fromiter(pool.map(_decode, _views(images)), dtype=np.int8, count=len(images))


def _views(column: pa.ChunkedArray) -> Iterator[pa.Buffer | None]:
    for chunk in column.chunks:
        yield from (value.as_buffer() for value in chunk)


def _decode(data: pa.Buffer | None) -> Reason:
    if data is None or data.size == 0:
        return Reason.MISSING_IMAGE
    try:
        with Image.open(io.BytesIO(data), formats=DECODERS) as image:
            image.convert("RGB")
    except _BOMBS:
        return Reason.HUGE_IMAGE
    except _DECODE_ERRORS:
        return Reason.UNDECODABLE_IMAGE
    return Reason.NONE
