"""Build the command and the addresses that open runs, and the columns of the runs table.

MLflow stores the columns of its runs table in the browser, except in *shared views*: an experiment tag contains the
state of the page, and an address with the tag's key opens the table in that state. We store one such view, so that one
link shows verdict and headline figures side by side without a click.
"""

import json
import shlex

from ray_distill.tasks.answers.family import Answers

#: Our name for the tag that MLflow shows as a run's description, rendered as Markdown.
DESCRIPTION = "description"
#: Our name for the tag that renames a run; the name is the only text in all tables and charts of MLflow.
TITLE = "title"
#: Columns of the review table that all tasks share: ``tags.<name>``, ``metrics.<name>``, ``params.<name>`` or
#: ``attributes.<name>``.
_FIRST, _LAST = ("tags.verdict", "tags.stage"), ("metrics.latency_ms_p95", "attributes.Duration")
DEFAULT_COLUMNS = _FIRST + _LAST
VIEW = "review"
_VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"


def review_columns(answers: Answers) -> tuple[str, ...]:
    """Return the columns of the review table for models of a family.

    They are the headline metric of the student and of the teacher, then the other brief metrics.
    """
    first, *others = (metric.name for metric in answers.brief)
    names = (first, f"teacher_{first}", *others)
    return _FIRST + tuple(f"metrics.{name}" for name in names) + _LAST


def experiment_tags(columns: tuple[str, ...]) -> dict[str, str]:
    """Return the experiment tags that let MLflow's UI open on runs instead of LLM traces."""
    ids = [_column(name) for name in columns]
    state = {
        "selectedColumns": ids,
        "columnOrder": ids,
        "columnWidths": dict.fromkeys(ids, 90),
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
    }
    return {"mlflow.experimentKind": "custom_model_development", _VIEW_TAG: json.dumps(state)}


def ui_command(uri: str, port: int = 5000) -> str:
    """Return the command that opens the MLflow UI for a tracking URI."""
    if uri.startswith(("http://", "https://")):
        return f"python -m webbrowser {shlex.quote(uri)}"
    return f"mlflow ui --port {port} --backend-store-uri {shlex.quote(uri)}"


def review_url(uri: str, experiment_id: str, run_id: str | None = None, port: int = 5000) -> str:
    """Return the address of a run, or of the experiment's review table.

    For a database URI this is the local address at which ``ui_command`` serves the database.
    """
    base = uri.rstrip("/") if uri.startswith(("http://", "https://")) else f"http://127.0.0.1:{port}"
    page = f"runs/{run_id}?" if run_id else f"runs?viewStateShareKey={VIEW}&"
    return f"{base}/#/experiments/{experiment_id}/{page}workflowType=machine_learning"


def _column(name: str) -> str:
    kind, _, rest = name.partition(".")
    return f"{kind}.`{rest}`"
