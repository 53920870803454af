"""Pictures of every depth: shown in 8 bits by a stated rule, or refused by every stage with one reason."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ray_distill.errors import EvaluationError
from ray_distill.snapshots.rows import Reason
from ray_distill.tasks.answers.classes.serve import SERVING
from ray_distill.tasks.inputs import pixels
from ray_distill.tasks.inputs.image import IMAGE, check_images
from ray_distill.tasks.inputs.pixels import ImageError, decode_image
from ray_distill.testing.models import tiny_image_processor

SHARES = np.linspace(0, 1, 64).reshape(8, 8)
EIGHT = np.rint(SHARES * 255).astype(np.uint8)
DEEP = np.rint(SHARES * 65535).astype(np.uint16)
TWELVE = np.rint(SHARES * 4095).astype(np.uint16)


def _file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)
    return sink.getvalue()


def _png(values: np.ndarray[Any, Any], colour: int) -> bytes:
    """A PNG of 16 bits a channel: colour type 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    width = values.shape[1] // {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", width, values.shape[0], 16, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _tiff(
    values: np.ndarray[Any, Any], *, bits: int, signed: bool = False, white_is_zero: bool = False, packed: bytes = b""
) -> bytes:
    """An uncompressed grey TIFF, little-endian."""
    data = packed or values.tobytes()
    tags = [
        (256, values.shape[1]),
        (257, values.shape[0]),
        (258, bits),
        (259, 1),
        (262, 0 if white_is_zero else 1),
        (273, 8 + 2 + 12 * 10 + 4),
        (277, 1),
        (278, values.shape[0]),
        (279, len(data)),
        (339, 2 if signed else 1),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + data


def _packed_12_bits(values: np.ndarray[Any, Any]) -> bytes:
    pairs = values.reshape(-1, 2).astype(np.uint32)
    whole = (pairs[:, 0] << 12) | pairs[:, 1]
    return b"".join(int(value).to_bytes(3, "big") for value in whole)


def _pgm(values: np.ndarray[Any, Any], most: int) -> bytes:
    return f"P5 {values.shape[1]} {values.shape[0]} {most}\n".encode() + values.astype(">u2").tobytes()


#: Files that are shown, and their shades; one is off by rounding at most.
SHOWN: dict[str, Callable[[], tuple[bytes, np.ndarray[Any, Any]]]] = {
    "8 bits": lambda: (_file(Image.fromarray(EIGHT)), EIGHT),
    "16 bits": lambda: (_file(Image.fromarray(DEEP)), EIGHT),
    "16 bits of TIFF": lambda: (_file(Image.fromarray(DEEP), "TIFF"), EIGHT),
    "16 bits, white is zero": lambda: (_tiff(DEEP, bits=16, white_is_zero=True), 255 - EIGHT),
    "12 bits of TIFF": lambda: (_tiff(TWELVE, bits=12, packed=_packed_12_bits(TWELVE)), EIGHT),
    "PGM to 65535": lambda: (_pgm(DEEP, 65535), EIGHT),
    "PGM to 4095": lambda: (_pgm(TWELVE, 4095), EIGHT),
    "floats": lambda: (_file(Image.fromarray(SHARES.astype(np.float32)), "TIFF"), EIGHT),
    "16 bits a colour": lambda: (_png(np.repeat(DEEP, 3, axis=1), 2), np.repeat(EIGHT[..., None], 3, axis=-1)),
    "1 bit": lambda: (_file(Image.fromarray(EIGHT > 99)), np.where(EIGHT > 99, 255, 0)),
    "16 bits, all black": lambda: (_file(Image.fromarray(DEEP * 0)), EIGHT * 0),
    "16 bits, one dark shade": lambda: (_file(Image.fromarray(DEEP * 0 + 300)), EIGHT * 0 + 1),
    "floats, all black": lambda: (_file(Image.fromarray(SHARES.astype(np.float32) * 0), "TIFF"), EIGHT * 0),
    "CMYK": lambda: (_file(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), np.full((8, 8, 3), (255, 0, 0))),
    "palette": lambda: (
        _file(Image.merge("RGB", [Image.fromarray(EIGHT // 128 * 255)] * 3).convert("P")),
        np.repeat((EIGHT // 128 * 255)[..., None], 3, axis=-1),
    ),
    "half-transparent black": lambda: (_file(Image.new("RGBA", (8, 8), (0, 0, 0, 128))), np.full((8, 8, 3), 127)),
    "half-transparent grey of 16 bits": lambda: (
        _png(np.stack([DEEP * 0, DEEP * 0 + 0x8080], axis=-1).reshape(8, 16), 4),
        np.full((8, 8, 3), 127),
    ),
    "animated GIF": lambda: (
        _file(Image.fromarray(EIGHT), "GIF", save_all=True, append_images=[Image.new("L", (8, 8))]),
        np.repeat(EIGHT[..., None], 3, axis=-1),
    ),
    "TIFF of two pages": lambda: (
        _file(Image.fromarray(EIGHT), "TIFF", save_all=True, append_images=[Image.new("L", (8, 8))]),
        EIGHT,
    ),
}


def _turned() -> bytes:
    image = Image.new("L", (9, 5))
    exif = image.getexif()
    exif[0x0112] = 6
    return _file(image, "JPEG", exif=exif)


def _bomb() -> bytes:
    whole = _file(Image.new("L", (4, 4)))
    header = whole[:16] + (10_000).to_bytes(4, "big") * 2 + whole[24:29]
    return header + zlib.crc32(header[12:29]).to_bytes(4, "big") + whole[33:]


#: Files that are refused: the reason in a snapshot, and a part of the message.
REFUSED: dict[str, tuple[Callable[[], bytes], Reason, str]] = {
    "12 bits in 16": (
        lambda: _file(Image.fromarray(TWELVE)),
        Reason.IMAGE_RANGE,
        "whose values fill 12 bits or fewer, so that 16 of 256 shades would be left: convert it to 8 bits",
    ),
    "12 bits in 16 of TIFF": (lambda: _file(Image.fromarray(TWELVE), "TIFF"), Reason.IMAGE_RANGE, "12 bits or fewer"),
    "8 bits in 16": (lambda: _file(Image.fromarray(EIGHT.astype(np.uint16))), Reason.IMAGE_RANGE, "so that 1 of 256"),
    "one shade is left": (lambda: _file(Image.fromarray(256 + DEEP // 512)), Reason.IMAGE_RANGE, "so that 2 of 256"),
    "12 bits in 16 a colour": (lambda: _png(np.repeat(TWELVE, 3, axis=1), 2), Reason.IMAGE_RANGE, "12 bits or fewer"),
    "12 bits in 16, transparent": (
        lambda: _png(np.stack([TWELVE, TWELVE * 0], axis=-1).reshape(8, 16), 4),
        Reason.IMAGE_RANGE,
        "12 bits or fewer",
    ),
    "32 bits": (
        lambda: _file(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
        Reason.IMAGE_RANGE,
        "integers of 32 bits or with a sign, whose range is unknown",
    ),
    "16 bits with a sign": (
        lambda: _tiff(DEEP.astype(np.int32).astype(np.int16), bits=16, signed=True),
        Reason.IMAGE_RANGE,
        "with a sign",
    ),
    "floats to 255": (
        lambda: _file(Image.fromarray(EIGHT.astype(np.float32)), "TIFF"),
        Reason.IMAGE_RANGE,
        "image of floats from 0 to 255, expected 0 to 1",
    ),
    "high dynamic range": (
        lambda: _file(Image.fromarray(SHARES.astype(np.float32) * 7), "TIFF"),
        Reason.IMAGE_RANGE,
        "floats from 0 to 7",
    ),
    "floats that are not numbers": (
        lambda: _file(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"),
        Reason.IMAGE_RANGE,
        "from nan to nan",
    ),
    "cut PNG": (lambda: _file(Image.fromarray(EIGHT))[:60], Reason.UNDECODABLE_IMAGE, "undecodable image"),
    "cut JPEG": (lambda: _file(Image.new("L", (64, 64)), "JPEG")[:-50], Reason.UNDECODABLE_IMAGE, "truncated"),
    "a program's input": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        Reason.UNDECODABLE_IMAGE,
        "undecodable image",
    ),
    "ICO": (lambda: _file(Image.fromarray(EIGHT), "ICO"), Reason.UNDECODABLE_IMAGE, "undecodable image"),
    "decompression bomb": (_bomb, Reason.HUGE_IMAGE, "image too large: "),
    "strip": (lambda: _file(Image.new("L", (1, 1000))), Reason.IMAGE_STRIP, "image of 1×1000 pixels is a strip"),
}


def _served() -> Any:
    """The file of the decoder, as a served model executes it."""
    module: dict[str, Any] = {"__name__": "served_pixels"}
    exec(compile(SERVING.parts["pixels"].read_text(), "pixels.py", "exec"), module)
    return module


def _rows(*images: bytes) -> pa.Table:
    ids = pa.array([index.to_bytes(16, "big") for index in range(len(images))], pa.binary(16))
    return pa.table({"row_id": ids, "image": pa.array(images, pa.large_binary())})


@pytest.mark.parametrize("name", SHOWN)
def test_pictures_are_shown_in_their_range(name: str) -> None:
    """The right shades, one off at most by rounding, alike in every stage; the snapshot accepts them."""
    data, expected = SHOWN[name]()
    found = decode_image(data)
    assert found.dtype == np.uint8 and found.shape[:2] == expected.shape[:2]
    assert np.abs(found.astype(int) - expected.reshape(found.shape)).max() <= 1
    assert check_images(pa.chunked_array([pa.array([data])])).tolist() == [Reason.NONE]
    np.testing.assert_array_equal(_served()["decode_image"](data), found)
    assert IMAGE.encode(_rows(data), tiny_image_processor()).rows == 1
    grey = found.astype(float).mean(axis=-1).mean() / 255
    assert abs(IMAGE.statistics(pa.chunked_array([pa.array([data])]))["brightness"][0] - grey) < 0.3
    assert IMAGE.show(data).startswith(f"image: {found.shape[1]} × {found.shape[0]}, ")


@pytest.mark.parametrize("name", REFUSED)
def test_pictures_that_cannot_be_shown_are_refused_alike(name: str) -> None:
    """The snapshot has the reason; labelling, drift, display and a served model refuse with one message."""
    make, reason, message = REFUSED[name]
    data = make()
    column = pa.chunked_array([pa.array([data])])
    for errors in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("error" if errors else "ignore")
            assert check_images(column).tolist() == [reason]
            with pytest.raises(ImageError, match=message):
                decode_image(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        served = _served()
        with pytest.raises(served["ImageError"], match=message):
            served["decode_image"](data)
        (rejected,) = IMAGE.encode(_rows(data), tiny_image_processor()).rejected
        assert message in rejected.reason
        with pytest.raises(EvaluationError, match="the image of row 0 cannot be decoded"):
            IMAGE.statistics(column)
        assert "no readable image" in IMAGE.show(data)
        for corrupt in IMAGE.corruptions.values():
            assert corrupt(_rows(data), 3, np.random.default_rng(0)).equals(_rows(data))


def test_one_shade_of_16_bits_that_is_transparent_is_white() -> None:
    """A PNG may name one."""
    data = _file(Image.fromarray(DEEP), transparency=int(DEEP[0, 1]))
    found = decode_image(data)[..., 0]
    assert (
        found[0, 1] == 255 and np.abs(np.delete(found.ravel().astype(int), 1) - np.delete(EIGHT.ravel(), 1)).max() <= 1
    )


def test_a_turned_picture_is_upright_everywhere() -> None:
    """Statistics and display read it as models do."""
    assert decode_image(_turned()).shape == (9, 5, 1) and IMAGE.show(_turned()).startswith("image: 5 × 9")


def test_pictures_of_one_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many pixels as are allowed are read, one more is not."""
    monkeypatch.setattr(pixels, "MOST_PIXELS", 64)
    assert decode_image(_file(Image.new("L", (8, 8)))).shape == (8, 8, 1)
    with pytest.raises(ImageError, match="image too large: 13×5 pixels, at most 64 are read"):
        decode_image(_file(Image.new("L", (13, 5))))


def test_a_served_decoder_stands_alone() -> None:
    """It imports numpy and Pillow alone."""
    text = Path(SERVING.parts["pixels"]).read_text()
    imported = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported == {"io", "typing", "numpy", "PIL"}
