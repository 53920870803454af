"""The section sweep: which trials it describes, and what is refused."""

from typing import Any

import pytest

from ray_distill.config import Campaign, parse_config
from ray_distill.config.trials import expand, value_at
from ray_distill.errors import ConfigError

TEMPERATURE, RATE = "student.losses.soft.temperature", "student.training.learning_rate"


def _config(**sweep: Any) -> Campaign:
    return parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "seed": 5,
            "snapshot": {"source": "rows.jsonl"},
            "labels": {"teacher": {"model": "big"}, "signal": {"temperatures": [1, 2]}},
            "student": {"model": {"from": "config", "overrides": {"hidden_size": 8}}},
            "sweep": sweep,
        }
    )


def _refused(**sweep: Any) -> str:
    with pytest.raises(ConfigError) as error:
        expand(_config(**sweep))
    return str(error.value)


def test_a_grid_is_every_combination_and_the_last_path_changes_fastest() -> None:
    """Names are the shortest that tell paths apart; each trial has the campaign with its changes, less the sweep."""
    trials = expand(_config(grid={TEMPERATURE: [1, 2], RATE: [1e-3, 1e-2]}))
    assert [trial.name for trial in trials] == [
        "temperature=1, learning_rate=0.001",
        "temperature=1, learning_rate=0.01",
        "temperature=2, learning_rate=0.001",
        "temperature=2, learning_rate=0.01",
    ]
    assert [trial.number for trial in trials] == [1, 2, 3, 4]
    third = trials[2]
    assert third.changes == {TEMPERATURE: 2, RATE: 1e-3}
    assert third.config.sweep is None
    assert third.config.student.losses["soft"].temperature == 2
    assert third.config.student.training.learning_rate == (1e-3,)
    assert third.config.student.model.overrides == {"hidden_size": 8}


def test_paths_that_end_alike_are_named_by_more_of_themselves() -> None:
    """Two weights are no two columns of one name."""
    trials = expand(_config(grid={"student.losses.soft.weight": [0.5, 1], "student.losses.hard.weight": [0.1]}))
    assert [trial.name for trial in trials] == ["soft.weight=0.5, hard.weight=0.1", "soft.weight=1, hard.weight=0.1"]


def test_a_trial_that_replaces_a_section_is_named_by_what_differs() -> None:
    """Equal settings of the sections are left out; a section without any of its own is shown whole."""
    models = [
        {"from": "config", "overrides": {"hidden_size": 8, "num_hidden_layers": 1}},
        {"from": "config", "overrides": {"hidden_size": 8, "num_hidden_layers": 2}},
        {"from": "teacher_layers", "keep": 1},
    ]
    trials = expand(_config(grid={"student.model": models}))
    assert [trial.name for trial in trials] == [
        "from=config, hidden_size=8, num_hidden_layers=1",
        "from=config, hidden_size=8, num_hidden_layers=2",
        "from=teacher_layers, keep=1",
    ]
    alike = expand(_config(grid={"student.model": models[:2]}))
    assert [trial.name for trial in alike] == ["num_hidden_layers=1", "num_hidden_layers=2"]
    losses = [{"soft": {"weight": 1}}, {"soft": {"weight": 1}, "hard": {"weight": 1}}]
    whole = expand(_config(grid={"student.losses": losses}))
    assert [trial.name for trial in whole] == ['losses={"soft": {"weight": 1}}', "hard.weight=1"]


def test_named_trials_come_first_and_may_stand_alone() -> None:
    """What is optional in the campaign may be set below; a path that nobody has, has no value."""
    trials = expand(
        _config(
            trials=[
                {"name": "deep", "set": {"student.model.overrides.num_hidden_layers": 3}},
                {"name": "other seed", "set": {"seed": 9}},
            ],
            grid={TEMPERATURE: [2]},
        )
    )
    assert [trial.name for trial in trials] == ["deep", "other seed", "temperature=2"]
    assert value_at(trials[0].config, "student.model.overrides.num_hidden_layers") == 3
    assert value_at(trials[1].config, "student.model.overrides.num_hidden_layers") is None
    assert value_at(trials[1].config, "seed") == 9
    alone = expand(
        _config(
            trials=[
                {
                    "name": "adapters",
                    "set": {
                        "student.model.from": "checkpoint",
                        "student.model.model": "m",
                        "student.model.lora.rank": 2,
                    },
                }
            ]
        )
    )
    assert alone[0].config.student.model.lora is not None


def test_a_sample_of_the_grid_is_drawn_by_the_campaigns_seed_without_repeats() -> None:
    """The same every time, in the grid's order, and all of it if asked for."""
    grid = {TEMPERATURE: [1, 2], RATE: [float(rate) for rate in range(1, 21)]}
    drawn = [trial.name for trial in expand(_config(grid=grid, samples=7))]
    assert drawn == [trial.name for trial in expand(_config(grid=grid, samples=7))]
    everything = [trial.name for trial in expand(_config(grid=grid))]
    assert len(set(drawn)) == 7
    assert drawn == [name for name in everything if name in drawn]
    assert [trial.name for trial in expand(_config(grid=grid, samples=40))] == everything


def test_everything_wrong_is_told_at_once_by_path_and_trial() -> None:
    """The same mistake of several trials is one line that names two of them and counts the rest."""
    told = _refused(
        grid={"student.training.workers": [0, 1], TEMPERATURE: [1, 2, 3]},
        trials=[{"name": "typo", "set": {"student.training.epocs": 3}}],
    )
    lines = told.splitlines()
    assert lines[0] == "sweep: 4 of 7 trials are wrong"
    assert "student.training.epocs: unknown field; did you mean epochs? (trial 'typo')" in lines[1]
    assert lines[2].strip().startswith("student.training.workers: ")
    assert lines[2].endswith("(trials 'workers=0, temperature=1', 'workers=0, temperature=2' and 1 more)")
    assert len(lines) == 3


def test_a_path_through_what_is_no_section_is_named() -> None:
    """A number has nothing below it."""
    told = _refused(grid={"student.training.warmup.more": [1]})
    assert "student.training.warmup.more: warmup is not a section (trial 'more=1')" in told


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ({}, "needs a grid or trials"),
        ({"grid": {"snapshot.source": ["a"]}}, "'snapshot.source' is not a dotted path below student or labels"),
        ({"grid": {"evaluation": [1]}}, "'evaluation' is not a dotted path"),
        ({"grid": {"student": [1]}}, "'student' is not a dotted path"),
        ({"grid": {"seed.x": [1]}}, "'seed.x' is not a dotted path"),
        ({"grid": {"student..x": [1]}}, "'student..x' is not a dotted path"),
        ({"trials": [{"name": "a", "set": {"gate.alias": "x"}}]}, "'gate.alias' is not a dotted path"),
        ({"grid": {RATE: []}}, f"sweep.grid.{RATE}"),
        ({"grid": {RATE: [1e-3, 1e-3]}}, f"{RATE} has the value 0.001 twice"),
        ({"grid": {RATE: [1e-3]}, "samples": 2}, "samples is 2, but the grid has 1 combinations"),
        ({"grid": {RATE: [float(rate) for rate in range(1, 1002)]}}, "1001 trials are more than 1000"),
        ({"trials": [{"name": "a", "set": {"seed": 1}}, {"name": "a", "set": {"seed": 2}}]}, "have the name 'a'"),
        ({"grid": {RATE: [1e-3]}, "objective": "accuracy"}, "sweep.objective"),
        ({"grid": {RATE: [1e-3]}, "stop": {"rungs": [2, 1]}}, "must increase"),
        ({"grid": {RATE: [1e-3]}, "stop": {"rungs": [1], "keep": 1}}, "sweep.stop.keep"),
    ],
)
def test_a_wrong_section_is_refused_with_the_campaign(sweep: dict[str, Any], says: str) -> None:
    """Also by commands that do not sweep."""
    with pytest.raises(ConfigError) as error:
        _config(**sweep)
    assert says in str(error.value)


def test_true_and_one_are_two_values() -> None:
    """Python says that they are equal."""
    assert len(expand(_config(grid={"student.model.overrides.flag": [True, 1, 0]}))) == 3


def test_a_campaign_without_a_sweep_has_no_trials() -> None:
    """The section to add is named."""
    with pytest.raises(ConfigError, match="has no section `sweep`"):
        expand(_config(grid={RATE: [1e-3]}).model_copy(update={"sweep": None}))
