"""A small campaign of real digits for the sweep: scikit-learn's 1,797 images of 8×8, a teacher trained in seconds."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ray_distill.models.io.load import load_model
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.models import write_tiny_image_model

CLASSES = tuple("0123456789")
SIZE = 16
#: Digits that the teacher is trained on; the rest is the traffic.
TEACHER_ROWS = 700


def write_digits(folder: Path) -> tuple[Path, Path]:
    """Write ``teacher.parquet`` and ``traffic.parquet`` (columns ``image`` PNG bytes, ``digit``); return both paths."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    paths = folder / "teacher.parquet", folder / "traffic.parquet"
    for path, rows in zip(paths, (order[:TEACHER_ROWS], order[TEACHER_ROWS:]), strict=True):
        images = [_png(data.images[row]) for row in rows]
        pq.write_table(
            pa.table(
                {"image": pa.array(images, pa.binary()), "digit": pa.array([CLASSES[data.target[row]] for row in rows])}
            ),
            path,
        )
    return paths


def write_teacher(folder: Path, rows: Path, steps: int = 120) -> Path:
    """Train a small residual network on its own digits and write it as a checkpoint."""
    torch.set_num_threads(1)
    write_tiny_image_model(
        folder, CLASSES, seed=0, size=SIZE, architecture="resnet", embedding_size=16, hidden_sizes=[16, 32]
    )
    model, task = load_model(str(folder), task="image_classification"), TASKS["image_classification"]
    table = pq.read_table(rows)
    wanted = torch.tensor([CLASSES.index(digit) for digit in table["digit"].to_pylist()])
    encoded = task.inputs.encode(
        pa.table(
            {
                "row_id": pa.array([at.to_bytes(16, "big") for at in range(len(table))], pa.binary(16)),
                "image": table["image"],
            }
        ),
        model.processor,
    )
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-2)
    generator = np.random.default_rng(0)
    model.module.train()
    for _ in range(steps):
        index = generator.choice(len(table), 64, replace=False)
        loss = torch.nn.functional.cross_entropy(
            model.module(**task.inputs.collate(encoded, index)).logits, wanted[index]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.module.save_pretrained(folder)
    return folder


def config_of(folder: Path, **sections: Any) -> dict[str, Any]:
    """The campaign as plain values: twelve trials: one fails, one is another one again, one has two ranks, three
    learn too slowly."""
    size, rate = "student.model.overrides.hidden_sizes", "student.training.learning_rate"
    return {
        "campaign": "digits",
        "task": "image_classification",
        "seed": 3,
        "output": str(folder / "out"),
        "snapshot": {
            "source": str(folder / "traffic.parquet"),
            "columns": {"image": "image", "label": "digit"},
            "classes": list(CLASSES),
            "splits": {"train": 0.6, "validation": 0.2, "calibration": 0.1, "test": 0.1},
        },
        "labels": {
            "teacher": {"model": str(folder / "teacher")},
            "signal": {"temperatures": [1, 4]},
            "check": {"limits": {"accuracy": {"min": 0.8}}},
            "unit_rows": 256,
        },
        "student": {
            "model": {"from": "config", "overrides": {"embedding_size": 8}},
            "losses": {"soft": {"weight": 1.0, "temperature": 4}},
            "training": {
                "epochs": 5,
                "global_batch": 32,
                "micro_batch": 32,
                "learning_rate": 1e-2,
                "engine": "torch",
                "evaluate_every": 10,
                "checkpoint_every": 10,
            },
        },
        "evaluation": {"latency_requests": 10},
        "sweep": {
            "trials": [
                {"name": "no such layer", "set": {"student.model.overrides.no_such_field": 1}},
                {"name": "small again", "set": {size: [8, 8]}},
                {"name": "two ranks", "set": {size: [8, 24], "student.training.workers": 2}},
            ],
            "grid": {size: [[8, 8], [8, 16], [16, 32]], rate: [1e-2, 5e-3, 1e-5]},
            "stop": {"rungs": [2, 3], "keep": 0.3},
        },
        **sections,
    }


def _png(pixels_HW: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray((pixels_HW * 15.9).astype(np.uint8)).save(sink, format="PNG")
    return sink.getvalue()
