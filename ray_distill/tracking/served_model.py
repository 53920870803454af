"""The logged model as MLflow serves it: this file is copied beside the checkpoint and executed by MLflow.

It must not import the rest of the package: a serving machine has MLflow, transformers, torch, numpy, pandas and
Pillow, and nothing of ours. No code is pickled, and weights are read from safetensors only.

Input is a DataFrame with a column ``text`` (strings) or ``image`` (encoded bytes such as PNG or JPEG, or their
base64 text). Output is a DataFrame with ``label``, ``probability`` and ``probabilities``, one row an input row.
"""

import base64
import binascii
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from PIL import Image, UnidentifiedImageError

BATCH = 32


class ServedStudent(PythonModel):
    """A classifier checkpoint behind MLflow's predict."""

    def load_context(self, context: Any) -> None:
        """Load model and processor from the artifact ``checkpoint``; ``task`` comes from the model's config."""
        folder = _checkpoint(Path(context.artifacts["checkpoint"]))
        self.column, load = _TASKS[context.model_config["task"]]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model, self.encode = load(folder)
        self.model = model.to(self.device).eval()
        self.labels = [model.config.id2label[index] for index in range(model.config.num_labels)]

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify each row."""
        if self.column not in model_input.columns:
            raise ValueError(f"this model needs a column {self.column!r}, found {list(model_input.columns)}")
        values = list(model_input[self.column])
        rows = [self._probabilities(batch) for batch in _batches(values)]
        probabilities = np.concatenate(rows) if rows else np.zeros((0, len(self.labels)))
        best = probabilities.argmax(axis=1) if len(probabilities) else np.zeros(0, dtype=int)
        return pd.DataFrame({
            "label": [self.labels[index] for index in best],
            "probability": [float(row[index]) for row, index in zip(probabilities, best, strict=True)],
            "probabilities": [row.tolist() for row in probabilities],
        })

    @torch.inference_mode()
    def _probabilities(self, values: Sequence[Any]) -> np.ndarray[Any, Any]:
        inputs = {name: tensor.to(self.device) for name, tensor in self.encode(values).items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        rows: np.ndarray[Any, Any] = self.model(**inputs).logits.double().softmax(-1).cpu().numpy()
        return rows


Encode = Callable[[Sequence[Any]], Any]


def _load_text(folder: Path) -> tuple[Any, Encode]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 10**6)

    def encode(texts: Sequence[Any]) -> Any:
        wrong = [index for index, text in enumerate(texts) if not isinstance(text, str)]
        if wrong:
            raise ValueError(f"column 'text' must hold strings, found {texts[wrong[0]]!r}")
        return tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")

    return model, encode


def _load_image(folder: Path) -> tuple[Any, Encode]:
    model = transformers.AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    mode = "L" if getattr(model.config, "num_channels", 3) == 1 else "RGB"

    def encode(images: Sequence[Any]) -> Any:
        decoded = [np.asarray(_decode(image).convert(mode)) for image in images]
        channels_last = [image[:, :, None] if image.ndim == 2 else image for image in decoded]
        return processor(channels_last, return_tensors="pt", input_data_format="channels_last")

    return model, encode


_TASKS: dict[str, tuple[str, Callable[[Path], tuple[Any, Encode]]]] = {
    "text_classification": ("text", _load_text),
    "image_classification": ("image", _load_image),
}


def _decode(value: Any) -> Image.Image:
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else bytes(value)
        return Image.open(io.BytesIO(data))
    except (binascii.Error, UnidentifiedImageError, OSError, TypeError) as error:
        raise ValueError(f"column 'image' must hold encoded images (bytes or base64): {error}") from error


def _checkpoint(artifact: Path) -> Path:
    """Return the folder that holds config.json: the artifact itself, or the one folder inside it."""
    found = next((path.parent for path in (artifact / "config.json", *artifact.glob("*/config.json"))
                  if path.exists()), None)
    if found is None:
        raise ValueError(f"no config.json in the logged checkpoint {artifact}")
    return found


def _batches(values: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), BATCH):
        yield values[start : start + BATCH]


set_model(ServedStudent())
