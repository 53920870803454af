"""Log a transformers directory as an MLflow model with signature, example and metrics.

The model contains no pickled code.
"""

import base64
import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ray_distill.errors import ConfigError
from ray_distill.storage.scratch import Scratch
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.facets import Serving
from ray_distill.tasks.task import Task
from ray_distill.tracking.operations import LogModel

#: File that MLflow executes; it loads the code of the task's family.
SERVED = Path(__file__).with_name("served_model.py")
#: pandas types of the columns in a served frame; columns of other types are of type object.
_SERIES = {"double": "float64"}


def requirements(serving: Serving) -> list[str]:
    """Return pinned pip requirements without build tags such as ``+cpu``.

    Serving may use another build than training.
    """
    names = dict.fromkeys(("mlflow", "pandas", *serving.requirements))
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def plain_example(example: Any, task: str) -> list[str]:
    """Return example inputs as JSON values: texts unchanged, encoded images as base64.

    Args:
        example: one input or several: ``str`` for text, ``bytes`` (PNG, JPEG…) for binary inputs.
        task: name of the model's task.

    Raises:
        ConfigError: the task does not exist, or the example is not an input of it.
    """
    items = [example] if isinstance(example, str | bytes) else list(example)
    kind = bytes if get_task(task).inputs.binary else str
    if not items or not all(isinstance(item, kind) for item in items):
        raise ConfigError(f"the example of a {task} model must be {kind.__name__} or a list of it, found {example!r}")
    return [base64.b64encode(item).decode() if isinstance(item, bytes) else item for item in items]


def folder_digest(folder: Path) -> str:
    """Return the digest of a folder's file names and contents."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            total.update(f"{path.relative_to(folder)}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return "sha256:" + total.hexdigest()


def log_model(client: Any, *, experiment_id: str, run_id: str, operation: LogModel) -> str:
    """Log a checkpoint as a model of a run, once: equal files give the same model again.

    Args:
        client: an ``MlflowClient``.
        experiment_id: the run's experiment.
        run_id: the run that created the model.
        operation: the checkpoint's folder, the model's name, task, example inputs and metrics.

    Returns:
        The model's URI, ``models:/m-…``.
    """
    folder = Path(operation.path)
    digest = folder_digest(folder)
    found = _find(client, experiment_id, run_id, name=operation.name, digest=digest)
    model = found or client.create_logged_model(
        experiment_id,
        name=operation.name,
        source_run_id=run_id,
        model_type=operation.task,
        tags={"checkpoint": digest, "task": operation.task},
    )
    _connect(client, run_id, model.model_id)
    if str(model.status) != "READY":
        with Scratch("model") as scratch:
            target = scratch.path / "model"
            _write(target, model, run_id, operation)
            client.log_model_artifacts(model.model_id, str(target))
    _log_metrics(client, run_id, model.model_id, operation)
    client.finalize_logged_model(model.model_id, "READY")
    return f"models:/{model.model_id}"


def _find(client: Any, experiment_id: str, run_id: str, *, name: str, digest: str) -> Any:
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
    """Write the MLflow model directory.

    This copies the checkpoint once and does not load the model.
    """
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import Model

    task = get_task(operation.task)
    serving, column = task.answers.serve.SERVING, task.inputs.column
    copied: dict[str, str | Path] = {"checkpoint": operation.path, "code": serving.code, **serving.parts}
    outputs = {name: _SERIES.get(kind, "object") for name, kind in serving.outputs.items()}
    pyfunc.save_model(
        path=str(target),
        python_model=str(SERVED),
        artifacts={name: Path(path).absolute().as_uri() for name, path in copied.items()},
        model_config={"task": task.name, "column": column, "outputs": outputs, "parts": list(serving.parts)},
        signature=_signature(task),
        input_example=pd.DataFrame({column: list(operation.example)}),
        pip_requirements=requirements(serving),
        mlflow_model=Model(
            artifact_path=model.artifact_location, model_uuid=model.model_id, run_id=run_id, model_id=model.model_id
        ),
    )


def _signature(task: Task) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    kinds = {
        "string": DataType.string,
        "double": DataType.double,
        "strings": Array(DataType.string),
        "doubles": Array(DataType.double),
    }
    serving = task.answers.serve.SERVING
    params = [ParamSpec(name, DataType.long, value) for name, value in serving.params.items()]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary if task.inputs.binary else DataType.string, task.inputs.column)]),
        outputs=Schema([ColSpec(kinds[kind], name) for name, kind in serving.outputs.items()]),
        params=ParamSchema(params) if params else None,
    )
