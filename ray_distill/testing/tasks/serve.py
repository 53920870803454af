"""Conformance of a task's serving: declared columns, and the model's own answers."""

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ray_distill.models.io.save import save_model
from ray_distill.testing.tasks.case import TaskCase

#: Python types of the values in a column.
KINDS: Mapping[str, type] = {"string": str, "double": float, "strings": list, "doubles": list}
#: Absolute, in float32: requests are answered in other batches.
TOLERANCE = 1e-5


def check_served(case: TaskCase) -> None:
    """Require the saved student, when it is served, to answer as the model itself does.

    Its columns must be the declared ones; no requests have no answers.
    """
    serving = case.task.answers.serve.SERVING
    requests, params = list(case.requests), {**serving.params, **case.params}
    with tempfile.TemporaryDirectory(prefix="ray-distill-conformance-") as folder:
        save_model(case.student, Path(folder), card="", metadata={})
        parts = {name: _module(path) for name, path in serving.parts.items()}
        answer = _module(serving.code).load(
            Path(folder), task=case.config.task, column=case.task.inputs.column, **parts
        )
        found, none = answer(requests, params), answer([], params)
    for answers, rows in ((found, len(requests)), (none, 0)):
        assert answers.keys() == serving.outputs.keys(), f"columns {sorted(answers)}, not {sorted(serving.outputs)}"
        for name, kind in serving.outputs.items():
            assert len(answers[name]) == rows, f"{name}: {len(answers[name])} answers to {rows} requests"
            assert all(isinstance(value, KINDS[kind]) for value in answers[name]), f"{name} is not of {kind}"
    expected = case.answered(case.student, requests, params)
    assert expected.keys() == found.keys(), f"the model answers with {sorted(expected)}, served are {sorted(found)}"
    for name, values in expected.items():
        _assert_equal(name, found[name], values)


def check_serving_example(case: TaskCase) -> None:
    """Require example requests, where the family has some, to be of the kind of the inputs."""
    example = case.task.answers.serve.example(case.config)
    if example is not None:
        kind = bytes if case.task.inputs.binary else str
        assert example and all(isinstance(item, kind) for item in example), f"an example request is not {kind.__name__}"


def _assert_equal(name: str, found: Sequence[Any], expected: Sequence[Any]) -> None:
    if not all(isinstance(value, float) or _is_numbers(value) for value in expected):
        assert list(found) == list(expected), f"{name}: {found}, the model itself answers {expected}"
    else:
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, err_msg=name)


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, float) for item in value)


def _module(path: Path) -> ModuleType:
    """Execute a file as a separate module, as a served model does."""
    spec = importlib.util.spec_from_file_location(f"conformance_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
