"""Places of a submitted job: paths that only this machine has, and records that would end with the job."""

from pathlib import Path
from typing import Any

import pytest

from ray_distill.cli.submit_checks import check_submission
from ray_distill.config import Campaign, parse_config
from ray_distill.errors import ConfigError

HEAD = "http://head:8265"


def _config(**changes: Any) -> Campaign:
    value: dict[str, Any] = {
        "campaign": "c",
        "task": "text_classification",
        "output": "/shared/out",
        "snapshot": {"source": "s3://traffic/rows"},
        "labels": {"teacher": {"model": "my.models:teacher"}},
    }
    for path, item in changes.items():
        section = value
        *parents, last = path.split("__")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = item
    return parse_config(value)


def _refused(config: Campaign, folder: Path = Path("nowhere"), *arguments: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        check_submission(config, folder, arguments, address=HEAD, environment=environment)
    return str(error.value).split("\n  ")[1:]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"output": None}, "output: distill/c (the default) is relative: on the cluster it would be in the job's own"),
        ({"output": "./out"}, "output: ./out is relative"),
        ({"labels__store": "labels"}, "labels.store: labels is relative: on the cluster it would be"),
        ({"snapshot__source": ["/data/a.csv", "b.csv"]}, "snapshot.source: b.csv is relative: only jobs/ and"),
        ({"snapshot__exclude": ["train.csv"]}, "snapshot.exclude: train.csv is relative"),
        ({"labels__teacher": {"model": "teacher"}}, "labels.teacher.model: teacher is relative"),
        ({"student__model": {"from": "checkpoint", "model": "small"}}, "student.model.model: small is relative"),
        ({"student__ceiling": "file://rows.csv"}, "student.ceiling: file://rows.csv is relative"),
        (
            {"student__mixture": {"how": "source", "others": [{"labels": "ref.json"}]}},
            "student.mixture.others.0.labels: ref.json is relative",
        ),
        ({"evaluation__lm_eval": {"folder": "tasks", "tasks": ["a"]}}, "evaluation.lm_eval.folder: tasks is relative"),
        (
            {"sweep": {"trials": [{"name": "a", "set": {"labels.store": "trial-labels"}}]}},
            "labels.store: trial-labels is relative",
        ),
    ],
)
def test_a_relative_path_is_refused_with_its_meaning(changes: dict[str, Any], says: str) -> None:
    """Below the job's temporary folder there is nothing to read, and nothing stays that is written."""
    (line,) = _refused(_config(**changes))
    assert line.startswith(says)


def test_all_relative_paths_are_named_at_once() -> None:
    """The defaults of a laptop's campaign, and a reference that is a file here."""
    config = _config(output=None, snapshot__source="rows.csv")
    assert [line.partition(":")[0] for line in _refused(config, Path("x"), "--source=new.csv")] == [
        "output",
        "snapshot.source",
        "--source",
    ]


def test_inputs_below_jobs_are_sent_and_may_be_relative(tmp_path: Path) -> None:
    """All but hidden files there is the job's own; an output there would be deleted."""
    (tmp_path / "jobs" / "data").mkdir(parents=True)
    (tmp_path / "jobs" / "data" / "rows.csv").write_text("text,label\n")
    for source in ("jobs/data/rows.csv", "jobs/data/*.csv", "./jobs/data"):
        assert check_submission(_config(snapshot__source=source), tmp_path, address=HEAD, environment={}) == {}
    for source in ("jobs/data/no.csv", "jobs/../secret.csv", "jobs/.hidden/x.csv", "data/rows.csv"):
        assert "is relative" in _refused(_config(snapshot__source=source), tmp_path)[0]
    assert "is relative" in _refused(_config(output="jobs/data"), tmp_path)[0]


def test_references_of_a_job_may_be_urls_or_json() -> None:
    """The two forms of an argument, and JSON on the command line."""
    good = ("--snapshot", '{"url": "x"}', "--labels=s3://a/ref.json", "--note", "x.json")
    assert check_submission(_config(), Path("x"), good, address=HEAD, environment={}) == {}
    assert _refused(_config(), Path("x"), "--report", "report.json")[0].startswith("--report: report.json is relative")


@pytest.mark.parametrize(
    ("changes", "environment", "says"),
    [
        ({"output": "s3://b/out"}, {}, "tracking.uri is not set and the output s3://b/out is remote"),
        ({"tracking__uri": "sqlite:///mlflow.db"}, {}, "tracking.uri: sqlite:///mlflow.db is relative"),
        ({}, {"MLFLOW_TRACKING_URI": "sqlite:////home/me/a.db"}, "is a database of this machine"),
        ({"tracking__uri": "http://localhost:5000"}, {}, "tracking.uri: http://localhost:5000 is this machine"),
        ({}, {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}, "MLFLOW_TRACKING_URI: http://127.0.0.1:5000 is this"),
        ({}, {"MLFLOW_TRACKING_URI": "http://me:pw@mlflow"}, "http://me:…@mlflow has a password"),
    ],
)
def test_records_that_would_be_lost_are_refused(
    changes: dict[str, Any], environment: dict[str, str], says: str
) -> None:
    """A database in the job's folder, and a server that on the cluster is another one."""
    (line,) = _refused(_config(**changes), **environment)
    assert says in line and "pw" not in line


def test_variables_that_count_are_sent_and_secrets_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    """The job records where the submitter's MLflow would; its dashboard shows no token."""
    environment = {
        "MLFLOW_TRACKING_URI": "http://mlflow",
        "MLFLOW_EXPERIMENT_NAME": "team",
        "MLFLOW_TRACKING_TOKEN": "secret",
    }
    remote = _config(output="s3://b/out")
    sent = check_submission(remote, Path("x"), address=HEAD, environment=environment)
    assert sent == {"MLFLOW_TRACKING_URI": "http://mlflow", "MLFLOW_EXPERIMENT_NAME": "team"}
    shown = capsys.readouterr().err
    assert "MLFLOW_TRACKING_TOKEN: not sent with the job: set on the cluster" in shown and "secret" not in shown
    own = _config(tracking__uri="http://mine", tracking__experiment="x")
    assert check_submission(own, Path("x"), address=HEAD, environment=environment) == {}
