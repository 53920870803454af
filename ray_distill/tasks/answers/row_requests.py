"""Read requests and run a model that answers once a row.

This file is copied beside the checkpoint.

`served_model` executes the file, and passes the file of the task's family, whose ``columns(logits_NV, names, facts)``
turns logits into answers.

A serving machine has transformers, torch, numpy and Pillow, and nothing of ours, so this file does not import the
package. (One exception: a student that a ``module:function`` built, or whose inputs are a user's own, needs ray_distill
and the user's module, because no file can rebuild it.) No code is pickled, and weights are read from safetensors only.
Images are decoded by the file `ray_distill.tasks.inputs.pixels`, which is copied too.

Requests are strings, or encoded images (bytes such as PNG or JPEG, or their base64 text).
"""

import base64
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

BATCH = 32

Encode = Callable[[Sequence[Any]], Any]
Loaded = tuple[Any, Encode, list[str]]
"""Module, what turns a column's values into its inputs, names of what it answers with."""
#: (requests, parameters) -> answers by column.
Answer = Callable[[list[Any], Mapping[str, Any]], dict[str, list[Any]]]


def load(folder: Path, *, task: str, column: str, answers: Any, pixels: Any) -> Answer:
    """Load model and processor of a checkpoint whose inputs are in ``column``.

    Args:
        folder: the checkpoint.
        task: its name.
        column: ``text`` or ``image``; another one of a task of the user's own.
        answers: the module of the family's file.
        pixels: the module of the file that decodes images.
    """
    facts = _facts(folder)
    own = "factory" in facts or column not in _LOAD
    model, encode, names = _load_own(folder, task) if own else _LOAD[column](folder, pixels)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    dtype = next(model.parameters()).dtype

    def place(tensor: Any) -> Any:
        return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

    @torch.inference_mode()
    def logits(values: Sequence[Any]) -> torch.Tensor:
        inputs = {name: place(tensor) for name, tensor in encode(values).items()}
        rows: torch.Tensor = model(**inputs).logits.double().cpu()
        return rows

    def answer(values: list[Any], params: Mapping[str, Any]) -> dict[str, list[Any]]:
        rows = [logits(batch) for batch in _batches(values)]
        found: dict[str, list[Any]] = answers.columns(torch.cat([torch.zeros(0, len(names)), *rows]), names, facts)
        return found

    return answer


def _load_text(folder: Path, pixels: Any) -> Loaded:
    model = _text_classifier(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 10**6)

    def encode(texts: Sequence[Any]) -> Any:
        return tokenizer(
            [_text(text) for text in texts],
            padding=True,
            truncation=True,
            max_length=limit,
            padding_side="right",
            return_tensors="pt",
        )

    return model, encode, _labels(model)


def _text_classifier(folder: Path) -> Any:
    """Return the model; one of pooled states has its class in a file of its own beside it."""
    path = folder / "pooled_classifier.py"
    if not path.is_file():
        return transformers.AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = transformers.AutoConfig.from_pretrained(folder)
    return module.PooledClassifier.from_pretrained(folder, config=config, use_safetensors=True)


def _load_image(folder: Path, pixels: Any) -> Loaded:
    model = transformers.AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    channels = getattr(model.config, "num_channels", 3)

    def encode(images: Sequence[Any]) -> Any:
        ready = [pixels.to_channels(_decode(_bytes(image), pixels), channels) for image in images]
        return processor(ready, return_tensors="pt", input_data_format="channels_last", do_convert_rgb=False)

    return model, encode, _labels(model)


def _load_own(folder: Path, task: str) -> Loaded:
    """Load a student that the user's own code builds or feeds, by the package that saved it."""
    import pyarrow as pa

    from ray_distill.models.io.load import load_model
    from ray_distill.tasks.catalogue import get_task

    model, kind = load_model(str(folder), task=task), get_task(task)
    column, read = kind.inputs.column, _bytes if kind.inputs.binary else _text

    def encode(values: Sequence[Any]) -> Any:
        ids = pa.array([index.to_bytes(16, "big") for index in range(len(values))], pa.binary(16))
        rows = pa.table({"row_id": ids, column: [read(value, column) for value in values]})
        encoded = kind.inputs.encode(rows, model.processor)
        if encoded.rejected:
            raise ValueError(f"column {column!r}: {encoded.rejected[0].reason}")
        return kind.inputs.collate(encoded, np.arange(len(values)))

    return model.module, encode, list(model.classes)


#: Keyed by the column of the inputs.
_LOAD: dict[str, Callable[[Path, Any], Loaded]] = {"text": _load_text, "image": _load_image}


def _facts(folder: Path) -> dict[str, Any]:
    """Return what was saved beside the weights; empty where nothing was."""
    saved = folder / "ray_distill.json"
    found: dict[str, Any] = json.loads(saved.read_text(encoding="utf-8")) if saved.exists() else {}
    return found


def _labels(model: Any) -> list[str]:
    return [model.config.id2label[index] for index in range(model.config.num_labels)]


def _text(value: Any, column: str = "text") -> str:
    if not isinstance(value, str):
        raise ValueError(f"column {column!r} must contain strings, found {value!r}")
    return value


def _bytes(value: Any, column: str = "image") -> bytes:
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    try:
        return base64.b64decode(value, validate=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"column {column!r} must contain encoded images, as bytes or base64: {error}") from error


def _decode(data: bytes, pixels: Any) -> Any:
    try:
        return pixels.decode_image(data)
    except pixels.ImageError as error:
        raise ValueError(f"column 'image' must contain encoded images: {error}") from error


def _batches(values: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), BATCH):
        yield values[start : start + BATCH]
