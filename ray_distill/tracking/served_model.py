"""The logged model as MLflow serves it: this file is copied beside the checkpoint and executed by MLflow.

A serving machine has MLflow, pandas and what the model itself needs, and nothing of ours, so this file does not import
the package. How requests are answered stands in the artifact ``code``, a file of the task's family, whose ``load``
returns a function from requests and parameters to answers by column.

Input is a DataFrame with the column that the model's config names. Output is a DataFrame, one row an input row.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class ServedStudent(PythonModel):
    """A checkpoint behind MLflow's predict."""

    def load_context(self, context: Any) -> None:
        """Load the artifact ``checkpoint`` by the artifact ``code``; task, column and outputs are in the config."""
        config = context.model_config
        self.column, self.outputs = config["column"], config["outputs"]
        code = _module(Path(context.artifacts["code"]))
        self.answer = code.load(Path(context.artifacts["checkpoint"]), task=config["task"], column=self.column)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer each row."""
        if self.column not in model_input.columns:
            raise ValueError(f"this model needs a column {self.column!r}, found {list(model_input.columns)}")
        answers = self.answer(list(model_input[self.column]), params or {})
        return pd.DataFrame({name: pd.Series(answers[name], dtype=kind) for name, kind in self.outputs.items()})


def _module(path: Path) -> Any:
    """Execute a file as a module of its own."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


set_model(ServedStudent())
