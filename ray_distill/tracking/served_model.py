"""Serve a logged model in MLflow, which executes a copy of this file beside the checkpoint.

A serving machine has MLflow, pandas and the requirements of the model, but not this package, so this file does not
import it. The artifact ``code``, a file of the task's family, answers the requests: its ``load`` returns a function
from requests and parameters to answers by column. It receives the artifacts that the config names as ``parts``, as
modules.

The input is a DataFrame with the column that the model's config names. The output is a DataFrame with one row per
input row.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class ServedStudent(PythonModel):
    """A checkpoint that answers MLflow's predict."""

    def load_context(self, context: Any) -> None:
        """Load the artifact ``checkpoint`` with the artifact ``code``.

        The model's config names task, column and outputs.
        """
        config = context.model_config
        self.column, self.outputs = config["column"], config["outputs"]
        code, *parts = (_module(Path(context.artifacts[name])) for name in ("code", *config["parts"]))
        self.answer = code.load(
            Path(context.artifacts["checkpoint"]),
            task=config["task"],
            column=self.column,
            **dict(zip(config["parts"], parts, strict=True)),
        )

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer each row."""
        if self.column not in model_input.columns:
            raise ValueError(f"this model needs a column {self.column!r}, found {list(model_input.columns)}")
        answers = self.answer(list(model_input[self.column]), params or {})
        return pd.DataFrame({name: pd.Series(answers[name], dtype=kind) for name, kind in self.outputs.items()})


def _module(path: Path) -> Any:
    """Execute a file as a separate module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


set_model(ServedStudent())
