"""Multi-label students that MLflow serves: names above the saved thresholds, and the probabilities of all."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

from ray_distill.models.core.forward import forward
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.tasks.catalogue import get_task
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import write_tiny_image_model, write_tiny_text_model
from ray_distill.tracking.mlflow_tracker import MlflowTracker

NAMES = ["no", "yes", "maybe"]
THRESHOLDS = {"no": 0.05, "yes": 0.95}


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> MlflowTracker:
    folder = tmp_path_factory.mktemp("mlflow")
    return MlflowTracker(f"sqlite:///{folder / 'mlflow.db'}", "labels", folder / "spool")


def served(tracker: MlflowTracker, folder: Path, task: str, example: str | bytes) -> Any:
    with tracker.run("train") as run:
        uri = run.model(folder, name="student", task=task, example=example, metrics={})
    assert uri is not None
    mlflow.set_tracking_uri(tracker.uri)
    return mlflow.pyfunc.load_model(uri)


def saved(base: Path, folder: Path, task: str) -> Path:
    """Save a student with thresholds for two of its three labels."""
    model = replace(load_model(str(base), task=task), decision={"thresholds": THRESHOLDS})
    save_model(model, folder, card="# Student", metadata={})
    assert load_model(str(folder), task=task).decision == {"thresholds": THRESHOLDS}
    return folder


def probabilities(folder: Path, task: str, values: list[Any]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return the student's probabilities by the project's own path."""
    kind, model = get_task(task), load_model(str(folder), task=task)
    ids = pa.array([row_id(number) for number in range(len(values))], pa.binary(16))
    encoded = kind.inputs.encode(pa.table({"row_id": ids, kind.inputs.column: values}), model.processor)
    with torch.no_grad():
        logits = forward(model.module, kind.inputs.collate(encoded, np.arange(len(values)))).logits_BV
    return np.asarray(logits.double().sigmoid())


def decided(p: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> list[list[str]]:
    return [[NAMES[at] for at in np.flatnonzero(row >= [0.05, 0.95, 0.5])] for row in p]


def test_texts_are_answered_with_names(tracker: MlflowTracker, tmp_path: Path) -> None:
    """Thresholds come with the checkpoint; a text may have no label; no text has no answer; the example is there."""
    base = write_tiny_text_model(tmp_path / "base", NAMES, 0, problem_type="multi_label_classification")
    folder, texts = saved(base, tmp_path / "student", "text_multi_label"), ["good film", "bad " * 40, "so so"]
    model = served(tracker, folder, "text_multi_label", "good film")
    found = model.predict(pd.DataFrame({"text": texts}))
    p = probabilities(folder, "text_multi_label", texts)
    assert np.allclose(found["probabilities"].tolist(), p, atol=1e-6)
    assert found["labels"].tolist() == decided(p)
    assert len(model.predict(pd.DataFrame({"text": pd.Series([], dtype="str")}))) == 0
    assert model.metadata.signature.outputs.input_names() == ["labels", "probabilities"]
    assert model.input_example["text"].tolist() == ["good film"]


def test_images_are_answered_too(tracker: MlflowTracker, tmp_path: Path) -> None:
    """The same requests as a classifier of images takes."""
    base = write_tiny_image_model(tmp_path / "base", NAMES, 0, problem_type="multi_label_classification")
    folder = saved(base, tmp_path / "student", "image_multi_label")
    images = []
    for seed in range(3):
        sink = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(sink, "PNG")
        images.append(sink.getvalue())
    found = served(tracker, folder, "image_multi_label", images[0]).predict(pd.DataFrame({"image": images}))
    p = probabilities(folder, "image_multi_label", images)
    assert np.allclose(found["probabilities"].tolist(), p, atol=1e-6) and found["labels"].tolist() == decided(p)
