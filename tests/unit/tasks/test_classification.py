"""The two classification tasks: what is rejected and why, padding, predictions, corruptions."""

import io
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from ray_distill.errors import ConfigError
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.tasks.answers.classes.evaluation.measures import measure
from ray_distill.tasks.answers.classes.evaluation.predictions import log_probabilities
from ray_distill.tasks.catalogue import TASKS, get_task
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.inputs.pixels import decode_image, encode_png
from ray_distill.tasks.task import Task
from ray_distill.testing.models import tiny_image_processor, tiny_text_processor

TEXT, IMAGE = TASKS["text_classification"], TASKS["image_classification"]


def _ids(rows: int) -> pa.Array:
    return pa.array([row.to_bytes(16, "big") for row in range(rows)], pa.binary(16))


def _texts(values: list[str | bytes | None]) -> pa.Table:
    raw = pa.array([value.encode() if isinstance(value, str) else value for value in values], pa.binary())
    return pa.table({"row_id": _ids(len(values)), "text": pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())})


def _file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)
    return sink.getvalue()


def _images(values: list[bytes | None]) -> pa.Table:
    return pa.table({"row_id": _ids(len(values)), "image": pa.array(values, pa.large_binary())})


def _reasons(encoded: Encoded) -> dict[int, str]:
    return {int.from_bytes(item.row_id, "big"): item.reason for item in encoded.rejected}


def test_the_catalogue_names_its_tasks() -> None:
    """Each under its own name; an unknown one is refused with the known ones."""
    assert [task.name for task in TASKS.values()] == list(TASKS)
    with pytest.raises(ConfigError, match="text_classification or image_classification"):
        get_task("poetry")


def test_unusable_texts_go_apart_with_their_reason() -> None:
    """Missing, empty, blank and not UTF-8; the others keep ids and order."""
    encoded = TEXT.inputs.encode(_texts(["ab", None, "", " \n\t", b"\xff\xfe", "c"]), tiny_text_processor())
    assert _reasons(encoded) == {
        1: "no text",
        2: "empty text",
        3: "empty text",
        4: "not UTF-8: invalid start byte at byte 0",
    }
    assert [int.from_bytes(item, "big") for item in encoded.row_ids.to_pylist()] == [0, 5]
    assert encoded.features["input_ids"].offsets.tolist() == [0, 4, 7]


def test_strange_texts_are_texts() -> None:
    """Very long ones are cut; control characters, right-to-left and emoji pass."""
    encoded = TEXT.inputs.encode(_texts(["a " * 100_000, "\x00\x01", "שלום", "🙂" * 50]), tiny_text_processor())
    assert encoded.rejected == () and np.diff(encoded.features["input_ids"].offsets).max() == 64


def test_text_batches_are_padded_at_the_end() -> None:
    """To the longest of the batch, with the processor's pad id, any order of rows."""
    encoded = TEXT.inputs.encode(_texts(["a", "a b c", "a b"]), tiny_text_processor())
    batch = TEXT.inputs.collate(encoded, np.array([2, 0]))
    assert batch["input_ids"].dtype == torch.int64 and batch["input_ids"].shape == (2, 4)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["input_ids"][1, 3] == tiny_text_processor().tokenizer.pad_token_id


@pytest.mark.parametrize("rows", [0, 3])
def test_all_rows_may_be_unusable(rows: int) -> None:
    """Then nothing is encoded, and the features are there all the same."""
    for task, table, processor in (
        (TEXT, _texts([None] * rows), tiny_text_processor()),
        (IMAGE, _images([None] * rows), tiny_image_processor()),
    ):
        encoded = task.inputs.encode(table, processor)
        assert encoded.rows == 0 and len(encoded.rejected) == rows
        assert Encoded.from_table(encoded.to_table()).features.keys() == encoded.features.keys()


def _bad_crc() -> bytes:
    data = bytearray(_file(Image.new("L", (8, 8))))
    data[-20] ^= 0xFF
    return bytes(data)


def _bomb() -> bytes:
    header = b"\x00\x00\xff\xff\x00\x00\xff\xff\x08\x00\x00\x00\x00"
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + len(header).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")


UNUSABLE: dict[str, bytes | None] = {
    "missing": None,
    "empty": b"",
    "text": b"not an image",
    "cut": _file(Image.new("RGB", (64, 64), "red"), "JPEG")[:300],
    "damaged": _bad_crc(),
    "bomb": _bomb(),
    "strip": _file(Image.new("L", (1, 1000))),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_images_go_apart_with_their_reason(name: str) -> None:
    """Whatever is wrong with a file, its neighbours are encoded."""
    good = _file(Image.new("L", (8, 8)))
    encoded = IMAGE.inputs.encode(_images([good, UNUSABLE[name], good]), tiny_image_processor())
    assert encoded.rows == 2 and list(_reasons(encoded)) == [1]
    assert _reasons(encoded)[1]


MODES: dict[str, Callable[[], bytes]] = {
    "1": lambda: _file(Image.new("1", (9, 5), 1)),
    "L": lambda: _file(Image.new("L", (9, 5), 255)),
    "LA": lambda: _file(Image.new("LA", (9, 5), (0, 0))),
    "P": lambda: _file(Image.new("RGB", (9, 5), "white").convert("P")),
    "P with transparency": lambda: _file(Image.new("P", (9, 5), 0), transparency=0),
    "RGBA": lambda: _file(Image.new("RGBA", (9, 5), (0, 0, 0, 0))),
    "CMYK": lambda: _file(Image.new("CMYK", (9, 5), 0), "JPEG"),
    "I;16": lambda: _file(Image.fromarray(np.full((5, 9), 65535, np.uint16))),
    "GIF": lambda: _file(Image.new("L", (9, 5), 255), "GIF"),
    "WebP": lambda: _file(Image.new("RGB", (9, 5), "white"), "WEBP", lossless=True),
}


@pytest.mark.parametrize("mode", MODES)
def test_images_of_every_mode_decode_to_white(mode: str) -> None:
    """Grey ones to one channel, the others to three; what is transparent is white."""
    pixels = decode_image(MODES[mode]())
    assert pixels.dtype == np.uint8 and pixels.shape[:2] == (5, 9) and pixels.shape[2] in (1, 3)
    assert (pixels == 255).all()
    for channels in (1, 3):
        encoded = IMAGE.inputs.encode(_images([MODES[mode]()]), tiny_image_processor(14, channels))
        assert IMAGE.inputs.collate(encoded, np.array([0]))["pixel_values"].shape == (1, channels, 14, 14)


def test_a_photo_is_turned_upright() -> None:
    """As its EXIF orientation says."""
    image = Image.new("RGB", (9, 5))
    exif = image.getexif()
    exif[0x0112] = 6
    assert decode_image(_file(image, "JPEG", exif=exif)).shape == (9, 5, 3)


def test_images_collate_in_the_order_asked() -> None:
    """Rows by index, also out of a sliced table."""
    files = [_file(Image.new("L", (8, 8), grey)) for grey in (0, 100, 255)]
    encoded = IMAGE.inputs.encode(_images(files), tiny_image_processor())
    sliced = Encoded.from_table(encoded.to_table().slice(1))
    values = IMAGE.inputs.collate(sliced, np.array([1, 0]))["pixel_values"]
    assert values.shape == (2, 1, 28, 28) and values[0, 0, 0, 0] == 1 and values[1, 0, 0, 0] < 0


def test_predictions_are_log_probabilities() -> None:
    """float32 whatever the logits' dtype, one list a row; the measures take them as they are."""
    student: Any = SimpleNamespace(temperature=1.0)
    panel = Panel(task=TEXT, models={"student": student}, batch=1, bins=5)
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 5.0, 0.0]], dtype=torch.bfloat16)
    predictions = log_probabilities(panel, "student", logits)
    logp = np.array(predictions.column("logp").to_pylist())
    assert predictions.schema.field("logp").type == pa.list_(pa.float32())
    assert np.allclose(logp, logits.double().log_softmax(1), atol=1e-6)
    table = predictions.append_column("count", pa.array([1, 3])).append_column("label", pa.array([0, 2], pa.int32()))
    measured = measure(table, Resampling(seed=0, bootstrap=100, bins=5))
    assert measured["accuracy"].value == 0.25


SENTENCE = "The quick brown fox jumps over the lazy dog and then sleeps until noon, dreaming of hens."


def _corruptible(task: Task, rows: int = 12) -> pa.Table:
    labels = pa.array(range(rows), pa.int32())
    if task is TEXT:
        return _texts([f"{row} {SENTENCE}" for row in range(rows)]).append_column("label", labels)
    grey = np.tile(np.linspace(0, 255, 28, dtype=np.uint8), (28, 1))[..., None]
    colour = np.concatenate([grey, grey[::-1], 255 - grey], axis=-1)
    return _images([encode_png(grey if row % 2 else colour) for row in range(rows)]).append_column("label", labels)


def _changed(task: Task, before: pa.Table, after: pa.Table) -> float:
    """How far the inputs are from what they were: edit distance's cheap stand-in, or pixels."""
    pairs = zip(
        before.column(task.inputs.column).to_pylist(), after.column(task.inputs.column).to_pylist(), strict=True
    )
    if task is TEXT:
        return float(sum(len(set(zip(a, a[1:], strict=False)) ^ set(zip(b, b[1:], strict=False))) for a, b in pairs))
    return float(sum(np.abs(decode_image(a).astype(int) - decode_image(b)).mean() for a, b in pairs))


ALL = [(task, name) for task in (TEXT, IMAGE) for name in task.inputs.corruptions]


@pytest.mark.parametrize(("task", "name"), ALL, ids=[name for _, name in ALL])
def test_a_corruption_is_seeded_pure_and_graded(task: Task, name: str) -> None:
    """Equal seeds give equal rows; ids, labels, order and types stay; a higher severity changes more."""
    rows = _corruptible(task)

    def corrupt(severity: int, seed: int = 0, part: pa.Table = rows) -> pa.Table:
        return task.inputs.corruptions[name](part, severity, np.random.default_rng(seed))

    original = rows.column(task.inputs.column).to_pylist()
    changes = [_changed(task, rows, corrupt(severity)) for severity in (1, 2, 3)]
    assert 0 < changes[0] < changes[1] < changes[2]
    assert corrupt(2).equals(corrupt(2)) and corrupt(2).schema == rows.schema
    assert rows.column(task.inputs.column).to_pylist() == original
    for column in ("row_id", "label"):
        assert corrupt(3).column(column).equals(rows.column(column))
    parts = pa.concat_tables([corrupt(2, part=rows.slice(0, 5)), corrupt(2, part=rows.slice(5))])
    assert parts.equals(corrupt(2))
    if name not in ("blur", "contrast"):
        assert not corrupt(2, seed=1).equals(corrupt(2))


def test_corrupted_rows_still_encode() -> None:
    """Short and strange inputs survive every corruption at its highest severity."""
    texts = _texts(["a", "!", "é ß", "x" * 300, "a  b", " lead", "日本語"])
    images = _images([encode_png(np.zeros((1, 1, 1), np.uint8)), encode_png(np.zeros((3, 7, 3), np.uint8)), b"broken"])
    for task, rows, usable in ((TEXT, texts, 7), (IMAGE, images, 2)):
        processor = tiny_text_processor() if task is TEXT else tiny_image_processor()
        for corruption in task.inputs.corruptions.values():
            for seed in range(20):
                changed = corruption(rows, 3, np.random.default_rng(seed))
                assert task.inputs.encode(changed, processor).rows == usable
