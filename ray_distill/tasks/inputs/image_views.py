"""Make views of images: shifted, cropped, in other colours, mirrored, mixed with another.

A view has the size of its image. A view of a JPEG is a JPEG, because photographs without loss take several times the
bytes; views of other files are PNG.
"""

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageEnhance

from ray_distill.snapshots.augment.kinds import Change, Kind
from ray_distill.tasks.inputs.pixels import ImageError, Pixels, decode_image, encode_png, to_channels

#: (pixels ``[H, W, C]`` of the image and, where the kind mixes, its partner; strength; generator) -> pixels of the
#: first's height and width.
_Pixels = Callable[[Sequence[Pixels], float, np.random.Generator], Pixels]

_JPEG, _JPEG_QUALITY = b"\xff\xd8\xff", 95


def shift(images: Sequence[Pixels], strength: float, generator: np.random.Generator) -> Pixels:
    """Shift up to the share ``strength`` of each side, at least a pixel; the border is repeated."""
    height, width, _ = images[0].shape
    most = np.maximum(1, np.rint(np.array([height, width]) * strength)).astype(np.int64)
    down, right = generator.integers(-most, most + 1).tolist()
    right = right if down or right else 1
    pads = [(max(down, 0), max(-down, 0)), (max(right, 0), max(-right, 0)), (0, 0)]
    padded = np.pad(images[0], pads, mode="edge")
    return padded[max(-down, 0) :, max(-right, 0) :][:height, :width]


def crop(images: Sequence[Pixels], strength: float, generator: np.random.Generator) -> Pixels:
    """Cut up to the share ``strength`` of both sides off, and resize the rest."""
    height, width, _ = images[0].shape
    kept = 1 - generator.random() * min(strength, 0.9)
    left, top = generator.random(2) * (1 - kept)
    box = (left * width, top * height, (left + kept) * width, (top + kept) * height)
    return _array(_image(images[0]).resize((width, height), Image.Resampling.BILINEAR, box=box), images[0])


def colour(images: Sequence[Pixels], strength: float, generator: np.random.Generator) -> Pixels:
    """Change brightness, contrast and saturation by up to the share ``strength`` each."""
    image = _image(images[0])
    enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color][: 2 + (image.mode == "RGB")]
    for enhancer in enhancers:
        image = enhancer(image).enhance(1 + strength * generator.uniform(-1, 1))
    return _array(image, images[0])


def flip(images: Sequence[Pixels], strength: float, generator: np.random.Generator) -> Pixels:
    """Mirror left and right, with the chance ``strength``."""
    return images[0][:, ::-1] if generator.random() < strength else images[0]


def mixup(images: Sequence[Pixels], strength: float, generator: np.random.Generator) -> Pixels:
    """Blend with the partner, whose share is uniform up to ``strength`` (Zhang et al., 2018)."""
    own, other = _alike(images)
    share = generator.random() * strength
    return np.rint(own * (1 - share) + other * share).astype(np.uint8)


def cutmix(images: Sequence[Pixels], strength: float, generator: np.random.Generator) -> Pixels:
    """Replace a rectangle, up to the share ``strength`` of the area (Yun et al., 2019)."""
    own, other = _alike(images)
    height, width, _ = own.shape
    side = np.sqrt(generator.random() * strength)
    rows, columns = max(1, round(side * height)), max(1, round(side * width))
    top, left = int(generator.integers(height - rows + 1)), int(generator.integers(width - columns + 1))
    found = own.copy()
    found[top : top + rows, left : left + columns] = other[top : top + rows, left : left + columns]
    return found


def _alike(images: Sequence[Pixels]) -> tuple[Pixels, Pixels]:
    """Return image and partner, which is resized, both in colour if one is."""
    own, other = images
    channels = max(own.shape[-1], other.shape[-1])
    resized = _image(other).resize(own.shape[1::-1], Image.Resampling.BILINEAR)
    return to_channels(own, channels), to_channels(_array(resized, other), channels)


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _array(image: Image.Image, like: Pixels) -> Pixels:
    pixels = np.asarray(image)
    return pixels[..., None] if like.shape[-1] == 1 else pixels


def _on_files(change: _Pixels) -> Change:
    """Lift a change of pixels to image files; a file that cannot be decoded has no view."""

    def on_bytes(inputs: Sequence[bytes], strength: float, generator: np.random.Generator) -> bytes | None:
        try:
            images = [decode_image(data) for data in inputs]
        except ImageError:
            return None
        pixels = change(images, strength, generator)
        if (pixels.shape == images[0].shape) and (pixels == images[0]).all():
            return None
        return _encode(np.ascontiguousarray(pixels), jpeg=inputs[0].startswith(_JPEG))

    return on_bytes


def _encode(pixels: Pixels, *, jpeg: bool) -> bytes:
    if not jpeg:
        return encode_png(pixels)
    sink = io.BytesIO()
    _image(pixels).save(sink, format="JPEG", quality=_JPEG_QUALITY)
    return sink.getvalue()


IMAGE_VIEWS: Mapping[str, Kind] = {
    "shift": Kind(change=_on_files(shift), strength=0.1),
    "crop": Kind(change=_on_files(crop), strength=0.3),
    "colour": Kind(change=_on_files(colour), strength=0.3),
    # A mirrored digit, letter or road sign is another one.
    "flip": Kind(change=_on_files(flip), strength=1.0, automatic=False),
    "mixup": Kind(change=_on_files(mixup), strength=0.5, mixes=True),
    "cutmix": Kind(change=_on_files(cutmix), strength=0.5, mixes=True),
}
