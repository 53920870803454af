import json
import shlex
from pathlib import Path

import pytest
from pydantic import ValidationError

from ray_distill.config import TrackingConfig
from ray_distill.errors import ConfigError, PromotionError
from ray_distill.tasks.catalogue import get_task
from ray_distill.tracking.base import Dataset, Registry, Run, Tracker
from ray_distill.tracking.mlflow_registry import MlflowRegistry
from ray_distill.tracking.mlflow_tracker import MlflowTracker
from ray_distill.tracking.none import InMemoryRegistry, NullTracker
from ray_distill.tracking.open import open_tracker
from ray_distill.tracking.place import Place, place_of
from ray_distill.tracking.views import experiment_tags, review_columns, review_url, ui_command


def _place(config: TrackingConfig, output: str = "out", **environment: str) -> Place:
    place = place_of(config, campaign="intent", output_url=output, environment=environment)
    assert place is not None
    return place


def _open(config: TrackingConfig, output: str, spool: Path) -> tuple[Tracker, Registry]:
    return open_tracker(place_of(config, campaign="intent", output_url=output, environment={}), spool=spool)


@pytest.mark.parametrize(
    ("output", "folder"),
    [("distill/intent", "distill/intent"), ("s3://bucket/intent", "."), ("file:///data/intent", "/data/intent")],
)
def test_without_a_uri_runs_lie_beside_a_local_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, folder: str
) -> None:
    """The default is a SQLite file by absolute path; nothing is made by choosing it."""
    monkeypatch.chdir(tmp_path)
    tracker, registry = _open(TrackingConfig(), output, tmp_path / "spool")
    assert tracker.uri == f"sqlite:///{(tmp_path / folder / 'mlflow.db').resolve()}"
    assert isinstance(tracker, MlflowTracker) and isinstance(registry, MlflowRegistry)
    assert list(tmp_path.iterdir()) == []


def test_a_configured_server_is_taken_as_it_is(tmp_path: Path) -> None:
    """A server's URI is not touched; an impossible one is refused."""
    tracker, _ = _open(TrackingConfig(uri="http://mlflow:5000"), "out", tmp_path)
    assert tracker.uri == "http://mlflow:5000"
    with pytest.raises(ValidationError, match="'ftp://mlflow' is not an MLflow 3 store"):
        TrackingConfig(uri="ftp://mlflow")


def test_mlflows_variables_count_where_the_campaign_sets_nothing() -> None:
    """As for every MLflow client; one line says so, and hides a password."""
    place = _place(
        TrackingConfig(),
        MLFLOW_TRACKING_URI="https://me:secret@mlflow",
        MLFLOW_EXPERIMENT_NAME="team",
        MLFLOW_REGISTRY_URI="http://models:5000",
    )
    assert (place.uri, place.experiment) == ("https://me:secret@mlflow", "team")
    assert place.registry_uri == "http://models:5000"
    assert place.sentence == (
        "https://me:…@mlflow (MLFLOW_TRACKING_URI), experiment team (MLFLOW_EXPERIMENT_NAME), models in "
        "http://models:5000 (MLFLOW_REGISTRY_URI)"
    )


def test_the_campaign_wins_over_the_environment() -> None:
    """Field by field: an experiment that only the environment names goes to the configured server."""
    environment = {"MLFLOW_TRACKING_URI": "http://theirs", "MLFLOW_EXPERIMENT_NAME": "team", "MLFLOW_REGISTRY_URI": ""}
    place = _place(TrackingConfig(uri="http://mine"), **environment)
    assert (place.uri, place.uri_from, place.experiment) == ("http://mine", "tracking.uri", "team")
    assert place.registry_uri == "http://mine"
    both = _place(TrackingConfig(uri="http://mine", experiment="x", registry_uri="http://models"), **environment)
    assert (both.experiment, both.experiment_from) == ("x", "tracking.experiment")
    assert both.registry_uri == "http://models"


def test_variables_that_have_no_effect_are_named() -> None:
    """Only fluent runs follow them."""
    place = _place(TrackingConfig(), MLFLOW_EXPERIMENT_ID="7")
    assert place.sentence.endswith("MLFLOW_EXPERIMENT_ID is not read: set tracking.experiment")
    assert _place(TrackingConfig(experiment="x"), MLFLOW_EXPERIMENT_ID="7").not_read == ()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MLFLOW_TRACKING_URI", "./mlruns", "MLFLOW_TRACKING_URI: './mlruns' is not an MLflow 3 store"),
        ("MLFLOW_REGISTRY_URI", "file:///x", "MLFLOW_REGISTRY_URI: 'file:///x' is not"),
        ("MLFLOW_EXPERIMENT_NAME", "x" * 501, "MLFLOW_EXPERIMENT_NAME: MLflow's experiments have names"),
    ],
)
def test_a_variable_that_mlflow_refuses_is_named(name: str, value: str, says: str) -> None:
    """The user looks for it in the shell, not in the YAML file."""
    with pytest.raises(ConfigError, match=says):
        _place(TrackingConfig(), **{name: value})


def test_a_relative_database_is_beside_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages and workers start in folders of their own."""
    monkeypatch.chdir(tmp_path)
    assert _place(TrackingConfig(), MLFLOW_TRACKING_URI="sqlite:///a.db").uri == f"sqlite:///{tmp_path}/a.db"


@pytest.mark.parametrize("config", [TrackingConfig(enabled=False), TrackingConfig(uri="none")])
def test_tracking_can_be_off(tmp_path: Path, config: TrackingConfig) -> None:
    """Everything may be recorded, nothing is; run ids still reopen runs."""
    tracker, registry = _open(config, "out", tmp_path)
    assert isinstance(tracker, NullTracker) and isinstance(registry, InMemoryRegistry)
    with tracker.run("campaign") as parent, tracker.run("train", parent=parent.run_id) as run:
        _record(run, tmp_path)
    with tracker.run("train", run_id=run.run_id) as again:
        assert again.run_id == run.run_id != parent.run_id
    assert (tracker.uri, tracker.flush(), tracker.review_url()) == ("none", 0, "none")
    assert list(tmp_path.iterdir()) == []


def _record(run: Run, path: Path) -> None:
    run.params({"a": 1})
    run.tags({"a": "1"})
    run.metrics({"a": 1.0}, step=3)
    run.artifact(path)
    run.dataset(Dataset(name="d", digest="0", source="x", context="training", profile={}))
    assert run.model(path, name="m", task="text_classification", example="x", metrics={}) == path.as_uri()


def test_the_registry_in_memory_keeps_versions_tags_and_aliases() -> None:
    """It behaves as MLflow's does: the same model is the same version, unknown versions are errors."""
    registry: Registry = InMemoryRegistry()
    assert registry.alias("m", "champion") is None
    assert registry.register("file:///a", name="m", tags={"x": "1"}) == "1"
    assert registry.register("file:///b", name="m", tags={}) == "2"
    assert registry.register("file:///a", name="m", tags={"y": "2"}) == "1"
    registry.set_alias("m", "champion", "1")
    assert registry.alias("m", "champion") == "1" and registry.tags("m", "1") == {"x": "1", "y": "2"}
    for version in ("3", "0", "x"):
        with pytest.raises(PromotionError, match="2 version"):
            registry.set_alias("m", "champion", version)


def test_the_ui_opens_with_one_line() -> None:
    """The command quotes the store; the address opens our view of the runs table, or one run."""
    assert shlex.split(ui_command("sqlite:////a b/mlflow.db"))[-1] == "sqlite:////a b/mlflow.db"
    assert ui_command("https://mlflow") == "python -m webbrowser https://mlflow"
    assert review_url("https://mlflow/", "7", "abc").startswith("https://mlflow/#/experiments/7/runs/abc?")
    assert "127.0.0.1:5000/#/experiments/7/runs?viewStateShareKey=review&" in review_url("sqlite:////x.db", "7")


def test_the_view_holds_the_columns_in_order() -> None:
    """MLflow's UI names columns by kind and quoted name."""
    tags = experiment_tags(("tags.verdict", "metrics.student.accuracy"))
    view = json.loads(tags["mlflow.sharedViewState.review"])
    assert view["columnOrder"] == view["selectedColumns"] == ["tags.`verdict`", "metrics.`student.accuracy`"]


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("text_classification", ["accuracy", "teacher_accuracy", "macro_f1", "ece", "agreement"]),
        ("causal_lm", ["nll", "teacher_nll", "kl_from_teacher", "ece", "agreement"]),
        ("seq2seq", ["nll", "teacher_nll", "kl_from_teacher", "ece", "agreement"]),
    ],
)
def test_the_runs_table_shows_what_the_task_is_judged_by(task: str, metrics: list[str]) -> None:
    """The headline, the teacher's, and the other metrics that matter: of language models NLL and KL."""
    columns = review_columns(get_task(task).answers)
    assert [name.removeprefix("metrics.") for name in columns if name.startswith("metrics.")][:-1] == metrics
    assert columns[0] == "tags.verdict" and columns[-1] == "attributes.Duration"
