"""Encoded images to arrays and back; Pillow alone."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ray_distill.tasks.inputs.rows import Unusable

#: A longer strip would be resized to gigabytes by processors that keep the aspect ratio.
_LONGEST_RATIO = 200
_GREY_MODES = ("1", "L", "LA", "I", "F")


def decode_image(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode an image file to uint8, ``[H, W, 1]`` (grey) or ``[H, W, 3]``.

    The image is upright; transparency is over white.

    Raises:
        Unusable: it cannot be decoded, or is a strip too long to be resized.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image)
            upright.load()
            pixels = _pixels(upright)
    except Exception as error:  # Pillow's decoders raise many kinds, and a bad row must not stop a run
        raise Unusable(f"undecodable image: {type(error).__name__}: {error}") from error
    height, width = pixels.shape[:2]
    if max(height, width) > _LONGEST_RATIO * min(height, width):
        raise Unusable(
            f"image of {width}×{height} pixels is a strip: no side may be over {_LONGEST_RATIO} times the other"
        )
    return pixels


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode ``[H, W, 1]`` or ``[H, W, 3]`` uint8 as PNG, without loss."""
    sink = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(sink, format="PNG", compress_level=1)
    return sink.getvalue()


def _pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        grey: npt.NDArray[np.uint8] = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return grey[..., None]
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("L" if image.mode in _GREY_MODES else "RGB")
    if image.mode in _GREY_MODES:
        return np.asarray(image.convert("L"))[..., None]
    return np.asarray(image.convert("RGB"))
