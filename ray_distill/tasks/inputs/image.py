"""One encoded image a row (PNG, JPEG and all that Pillow decodes)."""

import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from ray_distill.errors import EvaluationError
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.snapshots.rows import Reason, Why
from ray_distill.tasks.encoded import Batch, Encoded
from ray_distill.tasks.inputs.image_corruptions import IMAGE_CORRUPTIONS
from ray_distill.tasks.inputs.image_views import IMAGE_VIEWS
from ray_distill.tasks.inputs.modality import Floats, Index, Inputs, Processor
from ray_distill.tasks.inputs.pixels import DECODERS, ImageError, Kind, Pixels, decode_image
from ray_distill.tasks.inputs.rows import Unusable, encoded, one_row, sift
from ray_distill.tasks.inputs.text import refuse_target

COLUMN = "image"
#: Columns of an image that are shown, and its shades from dark to light.
SHOWN_COLUMNS, _SHADES = 56, " .:-=+*#%@"
_REASONS: Mapping[Kind, Reason] = {
    "undecodable": Reason.UNDECODABLE_IMAGE,
    "huge": Reason.HUGE_IMAGE,
    "strip": Reason.IMAGE_STRIP,
    "range": Reason.IMAGE_RANGE,
}


class Images(Processor, Protocol):
    """A processor that reads images; see `models.text.processors.ImageProcessor`."""

    def images(self, images: list[npt.NDArray[np.uint8]]) -> Mapping[str, RaggedArray]:
        """Prepare images ``[H, W, C]`` uint8: ``pixel_values`` float32 ``[R, C, H, W]``."""


def encode(rows: pa.Table, processor: Processor) -> Encoded:
    """Decode, resize and normalise; missing and undecodable images are rejected."""
    images, row_ids, rejected = sift(rows, COLUMN, _read)
    return encoded(row_ids, dict(cast(Images, processor).images(images)), rejected, processor)


def collate(encoded: Encoded, index: Index) -> Batch:
    """Return ``pixel_values`` float32 ``[B, C, H, W]``."""
    import torch

    return {
        name: torch.from_numpy(feature.values[feature.offsets[index]]) for name, feature in encoded.features.items()
    }


def example(processor: Processor) -> Encoded:
    """Prepare a black image."""
    return one_row(cast(Images, processor).images([np.zeros((32, 32, 3), np.uint8)]))


def statistics(images: pa.ChunkedArray) -> dict[str, Floats]:
    """Return brightness and contrast (0 … 1), edges and size in pixels.

    Edges are the mean absolute step between neighbours.

    Raises:
        EvaluationError: an image cannot be decoded.
    """
    values = [_statistics_of(row, item.as_py()) for row, item in enumerate(images)]
    table = np.array(values, dtype=np.float64).reshape(-1, 4)
    return dict(zip(("brightness", "contrast", "edges", "pixels"), table.T, strict=True))


def show(data: bytes | None) -> str:
    """Return size and mode of an image, and its shades of grey as characters.

    The characters are twice as wide as high.
    """
    try:
        image = _grey(decode_image(data or b""))
        with Image.open(io.BytesIO(data or b""), formats=DECODERS) as file:
            mode = file.mode
    except ImageError as error:
        return f"image: {len(data or b'')} bytes that are no readable image ({error})"
    columns = min(2 * image.width, SHOWN_COLUMNS)
    small = image.resize((columns, max(1, round(columns / 2 * image.height / image.width))))
    shades = np.asarray(small).astype(int) * (len(_SHADES) - 1) // 255
    lines = ["".join(_SHADES[shade] for shade in line).rstrip() for line in shades]
    return "\n".join([f"image: {image.width} × {image.height}, {mode}", "\n".join(lines).strip("\n")])


def check_images(images: pa.ChunkedArray) -> Why:
    """Return why images are not usable, 0 for those that every later stage can decode."""
    with ThreadPoolExecutor() as pool:
        return np.fromiter(pool.map(_why, _views(images)), dtype=np.int8, count=len(images))


def _views(column: pa.ChunkedArray) -> Iterator[pa.Buffer | None]:
    for chunk in column.chunks:
        yield from (value.as_buffer() for value in chunk)


def _why(data: pa.Buffer | None) -> Reason:
    if data is None or data.size == 0:
        return Reason.MISSING_IMAGE
    try:
        decode_image(data.to_pybytes())
    except ImageError as error:
        return _REASONS[error.kind]
    return Reason.NONE


def _read(data: bytes) -> Pixels:
    try:
        return decode_image(data)
    except ImageError as error:
        raise Unusable(str(error)) from error


def _grey(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("L")


def _statistics_of(row: int, data: bytes) -> tuple[float, float, float, float]:
    try:
        grey = np.asarray(_grey(decode_image(data)), dtype=np.float64) / 255
    except ImageError as error:
        raise EvaluationError(f"the image of row {row} cannot be decoded: {error}") from error
    steps = [np.abs(np.diff(grey, axis=axis)) for axis in (0, 1)]
    edges = np.mean([step.mean() if step.size else 0.0 for step in steps])
    return float(grey.mean()), float(grey.std()), float(edges), float(grey.size)


IMAGE = Inputs(
    name="image",
    column=COLUMN,
    processor="ray_distill.models.text.processors:read_image_processor",
    binary=True,
    verify=check_images,
    encode=encode,
    collate=collate,
    example=example,
    statistics=statistics,
    show=show,
    corruptions=IMAGE_CORRUPTIONS,
    views=IMAGE_VIEWS,
    refuse=refuse_target,
)
