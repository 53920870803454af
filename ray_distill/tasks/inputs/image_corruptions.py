"""Corruptions of images that leave their content to a viewer: noise, blur, weak contrast."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageFilter

from ray_distill.tasks.inputs.corruptions import corrupt_column
from ray_distill.tasks.inputs.modality import Corruption
from ray_distill.tasks.inputs.pixels import ImageError, Pixels, decode_image, encode_png

#: (pixels [H, W, C], severity, generator) -> pixels of the same shape.
_Change = Callable[[Pixels, int, np.random.Generator], Pixels]

#: One value a severity: noise as a share of white; blur radius as a share of the shorter side; contrast kept.
_NOISE = {1: 0.08, 2: 0.16, 3: 0.28}
_BLUR = {1: 0.02, 2: 0.04, 3: 0.06}
_CONTRAST = {1: 0.6, 2: 0.35, 3: 0.2}


def noise(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Add Gaussian noise, independent by pixel and channel."""
    return _clip(pixels + generator.normal(0, 255 * _NOISE[severity], pixels.shape))


def blur(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Blur with a Gaussian whose radius grows with the image."""
    radius = _BLUR[severity] * min(pixels.shape[:2])
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius))).reshape(pixels.shape)


def contrast(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Draw all values towards the image's mean."""
    mean = pixels.mean()
    return _clip(mean + (pixels - mean) * _CONTRAST[severity])


def _clip(values: npt.NDArray[np.float64]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _on_files(change: _Change) -> Corruption:
    """Lift a change of pixels to image files; leave a file that cannot be decoded as it is."""

    def on_bytes(data: bytes, severity: int, generator: np.random.Generator) -> bytes:
        try:
            pixels = decode_image(data)
        except ImageError:
            return data
        return encode_png(change(pixels, severity, generator))

    def on_rows(rows: pa.Table, severity: int, generator: np.random.Generator) -> pa.Table:
        return corrupt_column(rows, "image", on_bytes, severity=severity, generator=generator)

    return on_rows


IMAGE_CORRUPTIONS: Mapping[str, Corruption] = {
    "noise": _on_files(noise),
    "blur": _on_files(blur),
    "contrast": _on_files(contrast),
}
