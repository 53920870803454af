"""What ``sweep: auto`` tries: what fits the labels, the losses and the student, one change a trial."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_distill.config import Campaign, parse_config
from ray_distill.config.identity import identity
from ray_distill.errors import ConfigError
from ray_distill.evaluation.sweep.compare import TrialResult, compared_with
from ray_distill.runtime.core.session import absolute, parent_key
from ray_distill.runtime.dry_run import plan_sweep
from ray_distill.runtime.model_checks.choose_student import sized
from ray_distill.runtime.sweep.preset import AS_CONFIGURED, MOST, budgets, with_preset
from ray_distill.runtime.sweep.publish import RATES, best_campaign
from ray_distill.runtime.sweep.resolve_trials import checked_trials, duplicates
from ray_distill.testing.models import write_tiny_text_model

LOSSES = {"soft": {"weight": 0.9}, "hard": {"weight": 0.1}}


def _config(folder: Path, *, sweep: Any = "auto", labels: Any = None, **student: Any) -> Campaign:
    if not (folder / "teacher").exists():
        write_tiny_text_model(folder / "teacher", ("a", "b"), 0, num_hidden_layers=4)
        (folder / "rows.jsonl").write_text('{"text": "one", "label": "a"}\n')
    training = {"engine": "torch", **student.pop("training", {})}
    value = {
        "campaign": "c",
        "task": "text_classification",
        "seed": 5,
        "output": str(folder / "out"),
        "snapshot": {"source": str(folder / "rows.jsonl"), "columns": {"label": "label"}},
        "labels": {"teacher": {"model": str(folder / "teacher")}, "signal": {"temperatures": [1]}, **(labels or {})},
        "student": {
            name: item for name, item in {"losses": LOSSES, "training": training, **student}.items() if item is not None
        },
        "tracking": {"enabled": False},
        "sweep": sweep,
    }
    return parse_config(value)


def _expanded(folder: Path, **values: Any) -> Campaign:
    return with_preset(_config(folder, **values))


def _names(config: Campaign) -> list[str]:
    assert config.sweep is not None
    return [trial.name for trial in config.sweep.trials]


def test_it_tries_what_fits(tmp_path: Path) -> None:
    """Each of a store with hidden states, temperatures and copied layers; a plain one leaves most of them out."""
    full = _expanded(
        tmp_path,
        labels={"signal": {"temperatures": [1, 2]}, "hidden": {"layers": [-1]}},
        model={"from": "teacher_layers", "keep": 2},
        training={"learning_rate": 1e-3, "epochs": 8},
    )
    assert _names(full) == [
        AS_CONFIGURED,
        "hidden states too",
        "temperature 2",
        "true labels weigh as much",
        "soft labels alone",
        "layers by importance",
        "twice as long",
        "lower rate",
    ]
    trials = checked_trials(full)
    assert len(trials) == MOST and duplicates(trials) == {} and budgets(full, trials) == 9
    assert full.sweep is not None and full.sweep.stop is not None and full.sweep.stop.rungs == (2, 4)
    plain = _expanded(tmp_path, losses={"soft": {}})
    assert _names(plain) == [AS_CONFIGURED, "true labels weigh as much", "until still less improves"]
    assert plain.sweep is not None and plain.sweep.stop is not None and plain.sweep.stop.rungs == (6, 12)
    assert all(trial.config.student.training.learning_rate == () for trial in checked_trials(plain))


def test_true_labels_are_weighed_where_there_are_any(tmp_path: Path) -> None:
    """Without a column of labels no weight of theirs is tried."""
    config = _config(tmp_path)
    columns = config.snapshot.columns.model_copy(update={"label": None})
    snapshot = config.snapshot.model_copy(update={"columns": columns, "classes": ("a", "b")})
    assert "soft labels alone" in _names(with_preset(config))
    found = _names(with_preset(config.model_copy(update={"snapshot": snapshot})))
    assert found == [AS_CONFIGURED, "until still less improves"]


def test_it_takes_away_what_is_used(tmp_path: Path) -> None:
    """Hidden states that are configured may do harm; rates that are all trained to their end are not stopped."""
    labels = {"hidden": {"layers": [-1]}}
    config = _expanded(
        tmp_path,
        labels=labels,
        losses={**LOSSES, "hidden": {"kind": "cosine", "layers": "last"}},
        training={"learning_rate": [1e-3, 1e-2]},
    )
    assert "without hidden states" in _names(config) and "lower rate" not in _names(config)
    assert config.sweep is not None and config.sweep.stop is None
    assert checked_trials(config)[0].config.student.losses == config.student.losses


def test_a_preset_has_further_trials_and_a_rule_of_its_own(tmp_path: Path) -> None:
    """Given ones win, under their names; the expanded sweep is not expanded again, and has one run."""
    own = {"name": "soft labels alone", "set": {"student.training.warmup": 0.2}}
    sweep = {"preset": "auto", "trials": [own], "stop": {"rungs": [3], "keep": 0.7}, "max_concurrent": 1}
    config = _expanded(tmp_path, sweep=sweep)
    assert config.sweep is not None and _names(config).count("soft labels alone") == 1
    assert config.sweep.trials[-1].set == own["set"] and config.sweep.stop is not None
    assert (config.sweep.stop.rungs, config.sweep.max_concurrent) == ((3,), 1)
    assert with_preset(config) is config
    assert parent_key(config, sweep=True) == parent_key(_expanded(tmp_path, sweep=sweep), sweep=True)


def test_a_dry_run_states_its_cost_before(tmp_path: Path) -> None:
    """A line a trial, the student, and the multiple of one student's budget."""
    config = _config(tmp_path, size=0.6)
    lines = plan_sweep(config)
    assert lines[1].startswith("student    size 0.6: from teacher_layers, 2 of 4 layers: ")
    trials = [line for line in lines if line.startswith("trial ")]
    assert trials[0] == "trial    1 as configured: seed=5" and len(trials) == 5
    (total,) = [line for line in lines if line.startswith("sweep")]
    assert (
        "5 students, at most 5 × the budget of the configured one" in total and "at 6, 12 epochs the best 50%" in total
    )
    assert not (tmp_path / "out").exists()


def test_the_best_trial_is_the_campaign_that_is_written(tmp_path: Path) -> None:
    """Whichever it is: the student has its losses, also those that the file leaves to their defaults, and its model."""
    config = with_preset(
        sized(
            _config(
                tmp_path,
                labels={"signal": {"temperatures": [1, 2]}, "hidden": {"layers": [-1]}},
                losses=None,
                training={"learning_rate": 1e-3, "epochs": 8},
                size=0.6,
            )
        )
    )
    trials = checked_trials(absolute(config))
    assert len(trials) == MOST
    for trial in trials:
        found = parse_config(yaml.safe_load(best_campaign(absolute(config), trials, trial.number))).student
        rates = {"learning_rate": tuple(sorted({1e-3, *(one.changes.get(RATES, 1e-3) for one in trials)}))}
        training = trial.config.student.training.model_copy(update=rates)
        assert identity(found) == identity(trial.config.student.model_copy(update={"training": training})), trial.name


def test_mistakes_of_the_campaign_are_those_of_its_first_trial(tmp_path: Path) -> None:
    """What no trial mends is refused once, before anything starts."""
    config = _expanded(tmp_path, losses={"soft": {"temperature": 7}})
    with pytest.raises(ConfigError, match=r"student\.losses\.soft"):
        checked_trials(config)


def test_what_helped_is_listed() -> None:
    """Beside the trial that changes nothing; stopped ones by name, and nothing where it is not there."""

    def trial(number: int, name: str, value: float, verdict: str = "finished") -> TrialResult:
        return TrialResult(number=number, name=name, verdict=verdict, changes={}, metrics={"m": value})

    trials = [
        trial(1, AS_CONFIGURED, 0.5),
        trial(2, "warm", 0.4),
        trial(3, "cold", 0.6),
        trial(4, "long", 0.9, "stopped"),
    ]
    assert compared_with(trials, AS_CONFIGURED, "m", more_is_better=False) == (
        "Tried beside the configured student (m 0.5000): better: warm (0.4000); not better: cold (0.6000); "
        "stopped: long."
    )
    better = compared_with(trials, AS_CONFIGURED, "m", more_is_better=True)
    assert "better: cold (0.6000); not better: warm (0.4000)" in better
    assert "better: none;" in compared_with(trials[:1] + trials[3:], AS_CONFIGURED, "m", more_is_better=False)
    assert compared_with(trials[1:], AS_CONFIGURED, "m", more_is_better=False) == ""
