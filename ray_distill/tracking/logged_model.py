"""A transformers directory as an MLflow logged model: signature, input example, metrics, no pickled code."""

import base64
import hashlib
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ray_distill.errors import ConfigError
from ray_distill.tracking.operations import LogModel

#: What a machine that serves the model needs; pinned to what is installed where it is logged.
REQUIREMENTS = ("mlflow", "transformers", "torch", "safetensors", "numpy", "pandas", "pillow")
#: What chat templates are written in.
TEMPLATES = "jinja2"
COLUMNS = {"text_classification": "text", "image_classification": "image", "causal_lm": "text", "seq2seq": "text"}
#: What `served_language` writes where nobody says how much; that file imports nothing of ours, nor we from it.
MAX_NEW_TOKENS = 128
#: By task, what MLflow executes where it is not `served_model`.
SERVED = {"causal_lm": "served_language.py", "seq2seq": "served_language.py"}


def requirements(task: str) -> list[str]:
    """Return pinned pip requirements; a build tag such as ``+cpu`` is left out, serving may use another build."""
    names = (*REQUIREMENTS, TEMPLATES) if task in SERVED else REQUIREMENTS
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def plain_example(example: Any, task: str) -> list[str]:
    """Return example inputs as JSON values: texts as they are, encoded images as base64.

    Args:
        example: one input or several: ``str`` for text, ``bytes`` (PNG, JPEG…) for images.
        task: of `COLUMNS`.

    Raises:
        ConfigError: a task or an example this tracker cannot log.
    """
    if task not in COLUMNS:
        raise ConfigError(f"models of task {task!r} cannot be logged: expected one of {sorted(COLUMNS)}")
    items = [example] if isinstance(example, str | bytes) else list(example)
    wanted = str if COLUMNS[task] == "text" else bytes
    if not items or not all(isinstance(item, wanted) for item in items):
        raise ConfigError(f"the example of a {task} model must be {wanted.__name__} or a list of it, found {example!r}")
    return [base64.b64encode(item).decode() if isinstance(item, bytes) else item for item in items]


def folder_digest(folder: Path) -> str:
    """Digest of a folder's file names and contents."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            total.update(f"{path.relative_to(folder)}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return "sha256:" + total.hexdigest()


def log_model(client: Any, *, experiment_id: str, run_id: str, operation: LogModel) -> str:
    """Log a checkpoint as a model of a run, once: the same files logged again give the same model.

    Args:
        client: an ``MlflowClient``.
        experiment_id: the run's experiment.
        run_id: the run that made the model.
        operation: the checkpoint's folder, the model's name, task, example inputs and metrics.

    Returns:
        The model's URI, ``models:/m-…``.
    """
    folder = Path(operation.path)
    digest = folder_digest(folder)
    found = _find(client, experiment_id, run_id, operation.name, digest)
    model = found or client.create_logged_model(
        experiment_id,
        name=operation.name,
        source_run_id=run_id,
        model_type=operation.task,
        tags={"checkpoint": digest, "task": operation.task},
    )
    _connect(client, run_id, model.model_id)
    if str(model.status) != "READY":
        with TemporaryDirectory() as scratch:
            _write(Path(scratch) / "model", model, run_id, operation)
            client.log_model_artifacts(model.model_id, str(Path(scratch) / "model"))
    _log_metrics(client, run_id, model.model_id, operation)
    client.finalize_logged_model(model.model_id, "READY")
    return f"models:/{model.model_id}"


def _find(client: Any, experiment_id: str, run_id: str, name: str, digest: str) -> Any:
    models = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    return next((model for model in models if model.name == name and model.tags.get("checkpoint") == digest), None)


def _connect(client: Any, run_id: str, model_id: str) -> None:
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    if outputs is None or model_id not in {output.model_id for output in outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _log_metrics(client: Any, run_id: str, model_id: str, operation: LogModel) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(key, value, operation.time, 0, model_id=model_id) for key, value in operation.metrics.items()]
    for start in range(0, len(metrics), 500):
        client.log_batch(run_id, metrics=metrics[start : start + 500], synchronous=True)


def _write(target: Path, model: Any, run_id: str, operation: LogModel) -> None:
    """Write the MLflow model directory; the model is not loaded, so this costs one copy of the checkpoint."""
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import Model

    column = COLUMNS[operation.task]
    pyfunc.save_model(
        path=str(target),
        python_model=str(Path(__file__).with_name(SERVED.get(operation.task, "served_model.py"))),
        artifacts={"checkpoint": str(operation.path)},
        model_config={"task": operation.task},
        signature=_signature(operation.task),
        input_example=pd.DataFrame({column: list(operation.example)}),
        pip_requirements=requirements(operation.task),
        mlflow_model=Model(
            artifact_path=model.artifact_location, model_uuid=model.model_id, run_id=run_id, model_id=model.model_id
        ),
    )


def _signature(task: str) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    column = COLUMNS[task]
    inputs = Schema([ColSpec(DataType.string if column == "text" else DataType.binary, column)])
    if task in SERVED:
        return ModelSignature(
            inputs=inputs,
            outputs=Schema([ColSpec(DataType.string, "generated")]),
            params=ParamSchema([ParamSpec("max_new_tokens", DataType.long, MAX_NEW_TOKENS)]),
        )
    return ModelSignature(
        inputs=inputs,
        outputs=Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "probability"),
                ColSpec(Array(DataType.double), "probabilities"),
            ]
        ),
    )
