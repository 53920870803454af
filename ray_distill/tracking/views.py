"""How a person opens what was recorded: the command, the address, and the columns of the runs table.

MLflow keeps the columns of its runs table in the browser, except for *shared views*: an experiment tag holds the
state of the page, and an address with its key opens the table in that state. We store one such view, so that one
link shows verdict and headline figures side by side without a click.
"""

import json
import shlex

from ray_distill.tasks.answers.family import Answers

#: Our name of the tag that MLflow shows as a run's description, rendered as Markdown.
DESCRIPTION = "description"
#: Our name of the tag that renames a run; the one text that every table and chart of MLflow shows.
TITLE = "title"
#: Columns of the review table that all tasks share: ``tags.<name>``, ``metrics.<name>``, ``params.<name>`` or
#: ``attributes.<name>``.
_FIRST, _LAST = ("tags.verdict", "tags.stage"), ("metrics.latency_ms_p95", "attributes.Duration")
DEFAULT_COLUMNS = _FIRST + _LAST
VIEW = "review"
_VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"


def review_columns(answers: Answers) -> tuple[str, ...]:
    """Return the columns of the review table for models of a family: headline, the teacher's, other brief metrics."""
    first, *others = (metric.name for metric in answers.brief)
    names = (first, f"teacher_{first}", *others)
    return _FIRST + tuple(f"metrics.{name}" for name in names) + _LAST


def experiment_tags(columns: tuple[str, ...]) -> dict[str, str]:
    """Return the experiment tags that make MLflow's UI open on runs and metrics, not on LLM traces."""
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
    """Return the one line that opens the MLflow UI for a tracking URI."""
    if uri.startswith(("http://", "https://")):
        return f"python -m webbrowser {shlex.quote(uri)}"
    return f"mlflow ui --port {port} --backend-store-uri {shlex.quote(uri)}"


def review_url(uri: str, experiment_id: str, run_id: str | None = None, port: int = 5000) -> str:
    """Return the address of a run, or of the experiment's review table.

    For a database URI the address is where ``ui_command`` serves it, on this machine.
    """
    base = uri.rstrip("/") if uri.startswith(("http://", "https://")) else f"http://127.0.0.1:{port}"
    page = f"runs/{run_id}?" if run_id else f"runs?viewStateShareKey={VIEW}&"
    return f"{base}/#/experiments/{experiment_id}/{page}workflowType=machine_learning"


def _column(name: str) -> str:
    kind, _, rest = name.partition(".")
    return f"{kind}.`{rest}`"
