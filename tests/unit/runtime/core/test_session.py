"""A campaign's hold on what is done and what it cost, without services."""

import json
from pathlib import Path

import pytest

from ray_distill.config import Campaign, parse_config
from ray_distill.errors import ConfigError
from ray_distill.runtime.core import session as session_module
from ray_distill.runtime.core.session import Session, absolute, open_session
from ray_distill.storage import files
from ray_distill.tracking.none import InMemoryRegistry, NullTracker
from ray_distill.tracking.place import Place


def _config(folder: Path, **sections: object) -> Campaign:
    return parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "output": str(folder / "out"),
            "snapshot": {"source": str(folder / "rows.jsonl")},
            "labels": {"teacher": {"model": "big"}},
            "tracking": {"enabled": False},
            **sections,
        }
    )


def test_the_session_records_where_mlflows_variables_point_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line at the start of every command; the campaign's own settings take precedence."""
    places: list[Place | None] = []

    def opened(place: Place | None, **more: object) -> tuple[NullTracker, InMemoryRegistry]:
        places.append(place)
        return NullTracker(), InMemoryRegistry()

    monkeypatch.setattr(session_module, "open_tracker", opened)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team-server")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team")
    for tracking in ({}, {"uri": "http://mine"}, {"enabled": False}):
        with open_session(_config(tmp_path, tracking=tracking)):
            pass
    assert [place and (place.uri, place.experiment) for place in places] == [
        ("http://team-server", "team"),
        ("http://mine", "team"),
        None,
    ]
    lines = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "record: http://team-server (MLFLOW_TRACKING_URI), experiment team (MLFLOW_EXPERIMENT_NAME)",
        "record: http://mine (tracking.uri), experiment team (MLFLOW_EXPERIMENT_NAME)",
        "record: nothing, because tracking is off",
    ]


def test_a_stage_is_done_only_for_the_inputs_it_was_done_with(tmp_path: Path) -> None:
    """The same key finds the result, in a later session too; another key and another stage find nothing."""
    with open_session(_config(tmp_path)) as session:
        assert session.done("train", "key") is None
        assert session.last("train") is None
        session.finish("train", "key", {"student": 1})
    with open_session(_config(tmp_path)) as session:
        assert session.done("train", "key") == {"student": 1}
        assert session.done("train", "other") is None
        assert session.done("label", "key") is None
        assert session.last("train") == {"key": "key", "result": {"student": 1}}


def test_a_state_file_that_is_something_else_is_named(tmp_path: Path) -> None:
    """It is neither taken for a result nor overwritten in silence."""
    with open_session(_config(tmp_path)) as session:
        files.write_json(session.url("state", "train.json"), {"result": 1})
        with pytest.raises(ConfigError, match=r"state/train\.json is not the result of a stage"):
            session.done("train", "key")


def test_the_attempts_at_a_stage_are_added_up_and_failed_ones_count(tmp_path: Path) -> None:
    """Two attempts, one of which failed: one cost, with the time and the bytes of both, in order of first attempts."""
    with open_session(_config(tmp_path)) as session:
        with pytest.raises(ConfigError, match="half way"), session.stage("label", cores=2) as stage:
            stage.meter.wrote(10)
            raise ConfigError("half way")
        with session.stage("train", cores=1):
            pass
        with session.stage("label", cores=2) as stage:
            stage.meter.wrote(5)
    with open_session(_config(tmp_path)) as session:
        costs = session.costs()
    assert [cost.stage for cost in costs] == ["label", "train"]
    assert costs[0].bytes_written == 15
    assert costs[0].wall_seconds > 0
    assert costs[0].core_hours == pytest.approx(2 * costs[0].wall_seconds / 3600)


def test_costs_are_told_at_the_prices_of_today(tmp_path: Path) -> None:
    """Hours are what was taken; a change of prices or of currency applies to all of them."""
    with open_session(_config(tmp_path)) as session, session.stage("label", cores=2, accelerators=1):
        pass
    with open_session(_config(tmp_path, cost={"core_hour": 3, "accelerator_hour": 5, "currency": "EUR"})) as session:
        cost = session.costs()[0]
    assert cost.currency == "EUR"
    assert cost.money == pytest.approx(3 * cost.core_hours + 5 * cost.accelerator_hours)


def test_commands_with_one_config_share_a_parent_run_and_others_do_not(tmp_path: Path) -> None:
    """The parent's id is kept for the same config, wherever it is recorded, and is another one for another config."""

    def parent(**sections: object) -> str:
        with open_session(_config(tmp_path, **sections)) as session:
            return session.parent.run_id

    first = parent()
    assert parent() == first
    assert parent(seed=1) != first


def test_relative_paths_become_absolute_and_urls_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in another folder finds sources, store, teacher and output; URLs and functions are left alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher").mkdir()
    value = {
        "campaign": "c",
        "task": "text_classification",
        "snapshot": {"source": "rows/*.jsonl"},
        "labels": {"teacher": {"model": "teacher"}},
        "student": {"ceiling": "more.jsonl"},
    }
    config = absolute(parse_config(value))
    assert config.output_url == str(tmp_path / "distill" / "c")
    assert config.store_url == str(tmp_path / "distill" / "c" / "labels")
    assert config.snapshot.source == (str(tmp_path / "rows" / "*.jsonl"),)
    assert config.labels.teacher.model == str(tmp_path / "teacher")
    assert config.student.ceiling == str(tmp_path / "more.jsonl")
    value["labels"] = {"teacher": {"model": "module:function"}, "store": "s3://labels/c"}
    config = absolute(parse_config(value))
    assert config.labels.teacher.model == "module:function"
    assert config.store_url == "s3://labels/c"


def test_a_session_is_held_by_one_config_alone(tmp_path: Path) -> None:
    """The session's config is the absolute one, and its URLs lie below its output."""
    with open_session(_config(tmp_path)) as session:
        assert isinstance(session, Session)
        assert session.url("state", "x.json") == str(tmp_path / "out" / "state" / "x.json")


def test_training_that_goes_on_goes_on_in_its_own_run(tmp_path: Path) -> None:
    """An attempt that failed is continued in the same nested run; one that succeeded, or of another config, is not."""

    def attempt(fails: bool, **sections: object) -> str:
        with open_session(_config(tmp_path, **sections)) as session, session.stage("train", resumes=True) as stage:
            run_id = stage.run.run_id
            if fails:
                runs.append(run_id)
                raise ConfigError("killed")
        return run_id

    runs: list[str] = []
    for _ in range(2):
        with pytest.raises(ConfigError, match="killed"):
            attempt(fails=True)
    assert attempt(fails=False, seed=1) not in runs
    with pytest.raises(ConfigError, match="killed"):
        attempt(fails=True)
    assert runs[0] == runs[1] != runs[2]
    assert attempt(fails=False) == runs[2]
    assert attempt(fails=False) != runs[2]
