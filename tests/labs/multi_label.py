"""Tiny texts and images with several labels a row, and teachers of them, for the end-to-end tests.

A text of some labels is spelt mostly with their letters; an image has a bright corner a label. Everything is a function
of seeds.
"""

import io
import json
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from ray_distill.models.io.load import load_model
from ray_distill.tasks.catalogue import get_task
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import write_tiny_image_model, write_tiny_text_model
from tests.labs.campaign import CLASSES, LETTERS

#: Letters of texts without any label.
OTHER = "stuvwxyz"
#: Rows and columns of the corner of each label.
CORNERS = ((slice(0, 14), slice(0, 14)), (slice(0, 14), slice(14, 28)), (slice(14, 28), slice(0, 14)))

Sets = npt.NDArray[np.bool_]


def sets(rows: int, seed: int) -> Sets:
    """Return which labels apply to each row, ``[rows, 3]``; to a fifth of the rows none."""
    return np.random.default_rng([seed, 0]).random((rows, len(CLASSES))) < 0.4


def texts(applies: Sets, seed: int) -> list[str]:
    """Return distinct texts of 20 letters, two thirds of them of the labels that apply."""
    generator, made = np.random.default_rng([seed, 1]), list[str]()
    for row in applies:
        own = "".join(letters for letters, chosen in zip(LETTERS, row, strict=True) if chosen) or OTHER
        letters = [
            generator.choice(list(own if generator.random() < 0.67 else string.ascii_lowercase)) for _ in range(20)
        ]
        made.append("".join(letters[:7] + [" "] + letters[7:]))
    return made


def images(applies: Sets, seed: int) -> list[bytes]:
    """Return noisy grey images of 28 × 28 pixels as PNG, brighter in the corner of each label that applies."""
    generator, made = np.random.default_rng([seed, 2]), list[bytes]()
    for row in applies:
        pixels = generator.normal(90, 40, (28, 28))
        for corner, chosen in zip(CORNERS, row, strict=True):
            pixels[corner] += 70 * chosen
        sink = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(sink, "PNG")
        made.append(sink.getvalue())
    return made


def names(row: npt.NDArray[np.bool_]) -> list[str]:
    """Return the names of the labels that apply."""
    return [name for name, chosen in zip(CLASSES, row, strict=True) if chosen]


def write_texts(path: Path, made: Sequence[str], applies: Sets, unknown: Sequence[int] = ()) -> Path:
    """Write JSON Lines whose labels are lists of names; null where ``unknown``."""
    labels = [None if at in set(unknown) else names(row) for at, row in enumerate(applies)]
    rows = [json.dumps({"text": text, "label": label}) for text, label in zip(made, labels, strict=True)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def write_images(path: Path, made: Sequence[bytes], applies: Sets) -> Path:
    """Write Parquet whose labels are vectors of 0 and 1."""
    label = pa.array(applies.astype(np.int64).tolist(), pa.list_(pa.int64()))
    pq.write_table(pa.table({"image": pa.array(made, pa.binary()), "label": label}), path)
    return path


def write_teacher(folder: Path, task: str, steps: int = 60) -> Path:
    """Train a model of 2 layers on 600 rows of its own, each label by itself, and write it as a checkpoint."""
    torch.set_num_threads(1)
    kind, applies = get_task(task), sets(600, seed=99)
    if kind.inputs.binary:
        write_tiny_image_model(folder, CLASSES, 1, problem_type="multi_label_classification")
        made: Sequence[str | bytes] = images(applies, seed=99)
    else:
        write_tiny_text_model(folder, CLASSES, 1, initializer_range=0.1, problem_type="multi_label_classification")
        made = texts(applies, seed=99)
    model = load_model(str(folder), task=task)
    ids = pa.array([row_id(number) for number in range(len(made))], pa.binary(16))
    encoded = kind.inputs.encode(pa.table({"row_id": ids, kind.inputs.column: made}), model.processor)
    optimizer, generator = torch.optim.AdamW(model.module.parameters(), lr=5e-3), np.random.default_rng(0)
    model.module.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(steps):
            index = generator.choice(len(made), 64, replace=False)
            logits = model.module(**kind.inputs.collate(encoded, index)).logits
            wanted = torch.from_numpy(applies[index].astype(np.float32))
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.module.save_pretrained(folder)
    return folder
