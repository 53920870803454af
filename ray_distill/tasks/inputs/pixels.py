"""Decode image files to arrays, and encode them, alike in every stage and in a served model.

This file is copied beside a served checkpoint, so it imports numpy and Pillow alone.

Everything becomes 8 bits a channel, the range in which image processors expect pictures:

- 8 bits and fewer: as they are. CMYK is converted without colour profiles; transparency is over white.
- 16 bits, and PGM of any depth: by their 8 highest bits. TIFF of 12 bits: likewise, by its 8 highest of 12.
- floats from 0 to 1: times 255.
- 16 bits of which fewer than `_FEWEST` shades would be left (such as 12 bits in 16), other floats, and integers of 32
  bits or with a sign: refused, because the range that their writer meant is not in the file.
- several frames or pages: the first.
"""

import io
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

#: Pillow's decoders for these are self-contained. (Others start programs: EPS starts Ghostscript.)
DECODERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: Pixels of one image; Pillow's own limit, above which it suspects a decompression bomb.
MOST_PIXELS = 89_478_485

#: A longer strip would be resized to gigabytes by processors that keep the aspect ratio.
_LONGEST_RATIO = 200
#: Shades of 256 that a picture of 16 bits with any content spans at least; 12 bits in 16 span 16.
_FEWEST = 17
_LUMA = (0.299, 0.587, 0.114)
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)
_BITS, _PHOTOMETRIC = 258, 262
_CONVERT = "convert it to 8 bits, or to 16 bits that span 0 … 65535"

Pixels = npt.NDArray[np.uint8]
Kind = Literal["undecodable", "huge", "strip", "range"]


class ImageError(ValueError):
    """Why one image cannot be used."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def decode_image(data: bytes) -> Pixels:
    """Decode an image file to uint8, ``[H, W, 1]`` (grey) or ``[H, W, 3]``, upright.

    Raises:
        ImageError: it cannot be decoded, is too large or too long, or has no known range of values.
    """
    try:
        with Image.open(io.BytesIO(data), formats=DECODERS) as image:
            _check_size(*image.size)
            upright = ImageOps.exif_transpose(image)
            upright.load()
            return _pixels(upright, image, data)
    except ImageError:
        raise
    except _BOMBS as error:
        raise ImageError("huge", f"image too large: {type(error).__name__}: {error}") from error
    except Exception as error:  # Pillow's decoders raise many kinds, and a bad row must not stop a run
        raise ImageError("undecodable", f"undecodable image: {type(error).__name__}: {error}") from error


def encode_png(pixels: Pixels) -> bytes:
    """Encode ``[H, W, 1]`` or ``[H, W, 3]`` uint8 as PNG, without loss."""
    sink = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(sink, format="PNG", compress_level=1)
    return sink.getvalue()


def to_channels(pixels: Pixels, channels: int) -> Pixels:
    """Convert ``[H, W, C]`` between grey and colour by the luma of ITU-R 601, as Pillow does.

    Raises:
        ValueError: of other numbers of channels than 1 and 3.
    """
    found = pixels.shape[-1]
    if found == channels:
        return pixels
    if (found, channels) == (1, 3):
        return np.repeat(pixels, 3, axis=-1)
    if (found, channels) == (3, 1):
        grey: Pixels = np.rint(pixels.astype(np.float64) @ np.array(_LUMA)).astype(np.uint8)
        return grey[..., None]
    raise ValueError(f"an image has {found} channels and the model takes {channels}: only 1 and 3 can be converted")


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ImageError("huge", f"image too large: {width}×{height} pixels, at most {MOST_PIXELS:,} are read")
    if max(height, width) > _LONGEST_RATIO * min(height, width):
        raise ImageError(
            "strip",
            f"image of {width}×{height} pixels is a strip: no side may be over {_LONGEST_RATIO} times the other",
        )


def _pixels(image: Image.Image, file: Image.Image, data: bytes) -> Pixels:
    if image.mode.startswith("I;16") or (image.mode == "I" and file.format in ("PNG", "PPM")):
        return _from_16_bits(image, file)
    if image.mode == "F":
        return _from_floats(np.asarray(image))
    if image.mode == "I":
        raise ImageError("range", f"image of integers of 32 bits or with a sign, whose range is unknown: {_CONVERT}")
    grey = image.mode in _GREY_MODES
    if _bits(file, data) > 8:
        bare = np.asarray(image.convert("L" if grey else "RGB"))
        _check_shades(bare, bare)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels


def _from_16_bits(image: Image.Image, file: Image.Image) -> Pixels:
    values = np.asarray(image).astype(np.uint16)
    bits = _tag(file, _BITS, 16)
    if file.format == "TIFF" and _tag(file, _PHOTOMETRIC, 1) == 0:  # white is zero, and Pillow leaves it so
        values = (2**bits - 1 - values.astype(np.int64)).astype(np.uint16)
    shades = values >> (bits - 8)
    if bits > 12:
        _check_shades(values, shades)
    transparent = image.info.get("transparency")
    pixels = shades.astype(np.uint8)
    return (pixels if transparent is None else np.where(values == transparent, np.uint8(255), pixels))[..., None]


def _check_shades(values: npt.NDArray[np.integer], shades: npt.NDArray[np.integer]) -> None:
    """Refuse a picture of 16 bits that has content, which 8 bits would not show."""
    lightest = int(shades.max())
    if lightest < _FEWEST - 1 and values.min() != values.max():
        raise ImageError(
            "range",
            f"image of 16 bits whose values fill 12 bits or fewer, so that {lightest + 1} of 256 shades would be left: "
            f"{_CONVERT}",
        )


def _from_floats(values: npt.NDArray[np.float32]) -> Pixels:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise ImageError(
            "range", f"image of floats from {low:g} to {high:g}, expected 0 to 1: scale it, or convert it to 8 bits"
        )
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)[..., None]


def _bits(file: Image.Image, data: bytes) -> int:
    """Return the bits of a channel in a colour file; Pillow decodes them to 8."""
    if file.format == "PNG":
        return data[24]
    return _tag(file, _BITS, 8) if file.format == "TIFF" else 8


def _tag(file: Image.Image, tag: int, default: int) -> int:
    """Return a number of a TIFF, the first where each channel has one."""
    found = getattr(file, "tag_v2", {}).get(tag, default)
    return int(found[0] if isinstance(found, tuple) else found)
