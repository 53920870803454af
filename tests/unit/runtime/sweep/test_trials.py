"""A sweep before and after its trials run, without a cluster."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_distill import cli
from ray_distill.artifacts import LabelSetRef, SnapshotRef, StudentRef
from ray_distill.config import Campaign, SweepConfig, TeacherConfig, parse_config
from ray_distill.config.trials import expand
from ray_distill.errors import ConfigError, TeacherRefused, TrainingError
from ray_distill.evaluation.sweep.compare import SweepResult, TrialResult
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.runtime.core.session import absolute, parent_key
from ray_distill.runtime.dry_run import plan_sweep
from ray_distill.runtime.model_checks.choose_student import sized
from ray_distill.runtime.sweep import check_trial_models as check_trial_models_module
from ray_distill.runtime.sweep import resolve_trials as planning
from ray_distill.runtime.sweep.check_trial_models import check_trial_models
from ray_distill.runtime.sweep.publish import best_campaign, varied
from ray_distill.runtime.sweep.time_students import shape_of
from ray_distill.runtime.sweep.trial_worker import PlannedTrial, known_rungs, objective_of
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.snapshots.take import take_snapshot
from ray_distill.storage import files
from ray_distill.testing.models import write_tiny_text_model

RATE, K = "student.training.learning_rate", "labels.signal.k"


def _value(folder: Path, **sections: Any) -> dict[str, Any]:
    (folder / "rows.jsonl").write_text('{"text": "one", "label": "a"}\n')
    return {
        "campaign": "c",
        "task": "text_classification",
        "seed": 5,
        "output": str(folder / "out"),
        "snapshot": {"source": str(folder / "rows.jsonl"), "columns": {"label": "label"}},
        "labels": {
            "teacher": {"model": "ray_distill.testing.models:tiny_text_model", "arguments": {"classes": ["a", "b"]}},
            "signal": {"temperatures": [1, 2]},
        },
        "tracking": {"enabled": False},
        "sweep": {"grid": {RATE: [1e-3, 1e-2]}},
        **sections,
    }


def _config(folder: Path, **sections: Any) -> Campaign:
    return absolute(parse_config(_value(folder, **sections)))


def _labels(fingerprint: str = "f", store: str = "s") -> LabelSetRef:
    return LabelSetRef(
        store=store,
        fingerprint=fingerprint,
        snapshot=SnapshotRef(url="u", fingerprint="g"),
        log_length=1,
        log_digest="d",
    )


def test_what_training_would_refuse_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """An undeclared temperature, hidden states nobody stores, two rates in a trial that may be stopped: by trial."""
    config = _config(
        tmp_path,
        sweep={
            "trials": [
                {"name": "hot", "set": {"student.losses.soft.temperature": 4, RATE: 1e-3}},
                {"name": "hidden", "set": {"student.losses.hidden.weight": 1, RATE: 1e-3}},
                {"name": "rates", "set": {RATE: [1e-3, 1e-2]}},
                {"name": "good", "set": {RATE: 1e-3}},
            ],
            "stop": {"rungs": [1]},
        },
    )
    with pytest.raises(ConfigError) as error:
        planning.checked_trials(config)
    lines = str(error.value).splitlines()
    assert lines[0] == "sweep: 3 of 4 trials are wrong"
    assert "student.losses.soft" in lines[1]
    assert lines[1].endswith("(trial 'hot')")
    assert "no hidden states are stored" in lines[2]
    assert lines[2].endswith("(trial 'hidden')")
    assert "student.training.learning_rate: a trial that may be stopped has one rate, found 2: give one" in lines[3]
    assert not (tmp_path / "out").exists()


def _checkpoint_config(folder: Path, *overrides: dict[str, Any], **snapshot: Any) -> Campaign:
    """A sweep over the overrides, each at two rates, of a teacher that is a checkpoint of the classes a and b."""
    write_tiny_text_model(folder / "teacher", ("a", "b"), 0)
    source = {"source": str(folder / "rows.jsonl"), "columns": {"label": "label"}, **snapshot}
    return _config(
        folder,
        snapshot=source,
        labels={"teacher": {"model": str(folder / "teacher")}},
        student={"model": {"from": "config"}, "losses": {"soft": {}}, "training": {"engine": "torch"}},
        sweep={"grid": {"student.model.overrides": list(overrides), RATE: [1e-3, 1e-2]}},
    )


def test_a_student_that_cannot_be_built_is_named_and_stops_no_other_trial(tmp_path: Path) -> None:
    """By the dry run and before labelling, once for both of its rates; if every student is wrong, the sweep is."""
    config = _checkpoint_config(tmp_path, {"no_such_field": 1}, {"num_hidden_layers": 1})
    (note,) = check_trial_models(config, planning.checked_trials(config))
    assert note.startswith("this will fail, and stop no other trial: student.model")
    assert "no_such_field" in note and note.endswith("no_such_field=1, learning_rate=0.01')")
    assert plan_sweep(config)[-1] == f"note       {note}"
    config = _checkpoint_config(tmp_path, {"no_such_field": 1}, {"no_such_field": 2})
    with pytest.raises(ConfigError, match=r"sweep: 4 of 4 trials are wrong\n  student\.model.*no_such_field"):
        check_trial_models(config, planning.checked_trials(config))
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_other_classes_is_refused_before_a_sweep(tmp_path: Path) -> None:
    """As by a run: no trial could be labelled."""
    config = _checkpoint_config(tmp_path, {"num_hidden_layers": 1}, classes=["a", "c"])
    with pytest.raises(TeacherRefused, match=r"labels\.teacher\.model: .*'c'"):
        plan_sweep(config)


def test_a_large_sweep_checks_some_students_and_states_how_many_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first students are built, each once, whatever its rates."""
    config = _checkpoint_config(tmp_path, *({"num_hidden_layers": layers} for layers in (1, 2, 3)))
    monkeypatch.setattr(check_trial_models_module, "MOST", 2)
    (note,) = check_trial_models(config, planning.checked_trials(config))
    assert note == "the students of 2 trials were not built: they are checked when they train"


def test_trials_that_would_train_one_student_twice_are_found(tmp_path: Path) -> None:
    """Where they say the same, or change what decides nothing; another seed, or other labels, make another student."""
    config = _config(
        tmp_path,
        sweep={
            "trials": [
                {"name": "first", "set": {RATE: 1e-3}},
                {"name": "same", "set": {RATE: [1e-3]}},
                {"name": "more threads", "set": {RATE: 1e-3, "student.training.cpus": 2}},
                {"name": "seed", "set": {RATE: 1e-3, "seed": 6}},
                {"name": "labels", "set": {RATE: 1e-3, "labels.signal.estimator": "topk", K: 1}},
                {"name": "patience", "set": {RATE: 1e-3, "labels.failures.attempts": 9}},
            ]
        },
    )
    assert planning.duplicates(planning.checked_trials(config)) == {2: 1, 3: 1, 6: 1}


def test_other_labels_have_a_store_of_their_own(tmp_path: Path) -> None:
    """One a set, found again by its settings; the campaign's own labels stay in the campaign's store."""
    config = _config(tmp_path, sweep={"grid": {"labels.signal.estimator": ["dense", "topk"], RATE: [1e-3, 1e-2]}})
    trials = planning.checked_trials(config)
    sets = planning.labelling(config, trials)
    assert len(sets) == 2
    own, other = (sets[planning.label_key(trial.config)] for trial in (trials[0], trials[2]))
    assert own.store_url == str(tmp_path / "out" / "labels")
    assert other.store_url == f"{own.store_url}-{planning.label_key(trials[3].config)}"
    assert other.labels.signal.estimator == "topk"
    assert (other.seed, other.snapshot) == (config.seed, config.snapshot)


def test_a_store_that_a_trial_names_is_used(tmp_path: Path) -> None:
    """Then nothing is made up."""
    there = str(tmp_path / "there")
    config = _config(
        tmp_path, sweep={"trials": [{"name": "t", "set": {"labels.signal.estimator": "topk", "labels.store": there}}]}
    )
    (found,) = planning.labelling(config, planning.checked_trials(config)).values()
    assert found.store_url == there


def _snapshot(folder: Path, labelled: int) -> Any:
    rows = [{"text": f"row {at}", "label": "ab"[at % 2] if at < labelled else None} for at in range(400)]
    (folder / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = parse_config(
        _value(
            folder,
            snapshot={
                "source": str(folder / "many.jsonl"),
                "columns": {"label": "label"},
                "classes": ["a", "b"],
                "splits": {"train": 0.4, "validation": 0.4, "calibration": 0.1, "test": 0.1},
            },
        )
    )
    return open_snapshot(take_snapshot(config.snapshot, input_column="text", seed=5, url=str(folder / "snapshots")))


def test_the_objective_is_what_the_validation_split_allows(tmp_path: Path) -> None:
    """True labels where there are enough, else the teacher's, if all trials have the same."""
    labelled, bare = _snapshot(tmp_path, 400), _snapshot(tmp_path, 20)
    config, by_accuracy = (
        _config(tmp_path),
        _config(tmp_path, sweep={"grid": {RATE: [1e-3]}, "objective": "validation_accuracy"}),
    )
    assert planning.objective(config, labelled, 2) == "validation_nll"
    assert planning.objective(config, bare, 1) == "validation_kl"
    assert planning.objective(by_accuracy, labelled, 2) == "validation_accuracy"
    assert planning.judged_rows(config, bare, "validation_nll") == bare.manifest.splits["validation"].labelled
    assert planning.judged_rows(config, bare, "validation_kl") == bare.manifest.splits["validation"].rows
    with pytest.raises(ConfigError, match=r"accuracy is not measured .* validation_kl and validation_agreement"):
        planning.objective(by_accuracy, bare, 1)
    with pytest.raises(ConfigError, match="of different teachers' answers and cannot be compared"):
        planning.objective(config, bare, 2)


@pytest.mark.parametrize(
    ("metric", "more"),
    [
        ("validation_nll", False),
        ("validation_kl", False),
        ("validation_accuracy", True),
        ("validation_agreement", True),
    ],
)
def test_every_objective_has_a_direction(metric: str, more: bool) -> None:
    """Less loss, more accuracy."""
    assert planning.more_is_better("text_classification", metric) is more


def _planned(folder: Path, rule: str | None) -> PlannedTrial:
    trial = expand(_config(folder))[0]
    job = planning.plan_of(trial, _labels(), str(folder / "trials"), None)
    return PlannedTrial(trial=trial, job=job, metric="validation_nll", higher_is_better=False, rule=rule)


def test_a_stopped_trial_stays_stopped_under_the_same_rule_alone(tmp_path: Path) -> None:
    """Under another rule, or none, it goes on; what it had at its rungs counts under its own rule alone."""
    planned = _planned(tmp_path, "rule")
    folder = planned.job.output
    assert planning.on_disk(planned) is None
    files.write_json(f"{folder}/rungs.json", {"rule": "rule", "passed": [[1.0, 0.7]]})
    files.write_json(
        f"{folder}/stopped.json",
        {
            "rule": "rule",
            "step": 20,
            "epoch": 2.1,
            "metrics": {"validation_nll": 0.6},
            "passed": [[1.0, 0.7]],
            "rung": 2.0,
            "value": 0.6,
            "place": 4,
            "of": 5,
        },
    )
    outcome = planning.on_disk(planned)
    assert outcome is not None
    assert (outcome.verdict, outcome.metrics, outcome.epoch) == ("stopped", {"validation_nll": 0.6}, 2.1)
    assert outcome.reason == "at epoch 2.1: place 4 of 5 at the rung of 2"
    assert known_rungs(folder, "rule") == {1.0: 0.7, 2.0: 0.6}
    for rule in ("another", None):
        assert planning.on_disk(_planned(tmp_path, rule)) is None
        assert known_rungs(folder, rule) == {}


def test_the_objective_of_a_trial_is_less_is_better_and_must_be_there(tmp_path: Path) -> None:
    """What is measured is named."""
    planned = _planned(tmp_path, None)
    assert objective_of({"validation_nll": 0.5}, planned) == 0.5
    more = replace(planned, metric="validation_accuracy", higher_is_better=True)
    assert objective_of({"validation_accuracy": 0.5}, more) == -0.5
    with pytest.raises(TrainingError, match="validation_accuracy is not measured .* measured are validation_nll"):
        objective_of({"validation_nll": 0.5, "loss": 1.0}, more)


def test_a_sweep_has_a_run_of_its_own_and_changes_nothing_of_the_campaigns(tmp_path: Path) -> None:
    """Other commands' parent does not depend on the section; how many trials run at once changes no sweep."""
    config, none = _config(tmp_path), _config(tmp_path, sweep=None)
    assert parent_key(config) == parent_key(none)
    assert parent_key(config, sweep=True) != parent_key(config)
    slower = _config(tmp_path, sweep={"grid": {RATE: [1e-3, 1e-2]}, "max_concurrent": 1})
    other = _config(tmp_path, sweep={"grid": {RATE: [1e-3]}})
    assert parent_key(slower, sweep=True) == parent_key(config, sweep=True) != parent_key(other, sweep=True)


def test_the_best_trial_is_a_campaign_of_its_own(tmp_path: Path) -> None:
    """With its changes and its labels; but of the campaign's seed, which decides the snapshot."""
    config = _config(
        tmp_path, sweep={"trials": [{"name": "x", "set": {RATE: 1e-2, "seed": 8, "labels.signal.estimator": "topk"}}]}
    )
    trials = planning.checked_trials(config)
    found = parse_config(yaml.safe_load(best_campaign(config, trials, 1)))
    assert found.sweep is None
    assert found.student.training.learning_rate == (1e-2,)
    assert found.seed == 5
    assert found.store_url.startswith(str(tmp_path / "out" / "labels-"))
    assert found.snapshot == config.snapshot


def test_the_best_campaign_tries_the_rates_of_the_sweep_in_every_arm(tmp_path: Path) -> None:
    """Baselines are tuned over what the student was tuned over; where one rate is given, or auto, that stays."""
    config = _config(tmp_path, sweep={"grid": {RATE: [1e-2, 1e-3], "student.training.warmup": [0, 0.1]}})
    text = best_campaign(config, planning.checked_trials(config), 2)
    found = parse_config(yaml.safe_load(text))
    assert found.student.training.learning_rate == (1e-3, 1e-2) and found.student.training.warmup == 0.1
    assert "# Each arm, baselines included, tries all rates of the sweep" in text
    for given, rates in ((1e-3, (1e-3,)), ("auto", ())):
        grid = {"student.training.warmup": [0, 0.1]}
        config = _config(tmp_path, student={"training": {"learning_rate": given}}, sweep={"grid": grid})
        text = best_campaign(config, planning.checked_trials(config), 2)
        assert parse_config(yaml.safe_load(text)).student.training.learning_rate == rates
        assert "Each arm" not in text


def test_sizes_may_be_swept_over(tmp_path: Path) -> None:
    """Each trial has the model of its size, the page shows the size, and the best campaign has the model."""
    shape = {"num_hidden_layers": 6, "num_attention_heads": 4}
    write_tiny_text_model(tmp_path / "teacher", ("a", "b"), 0, **shape)
    config = _config(
        tmp_path, labels={"teacher": {"model": str(tmp_path / "teacher")}}, sweep={"grid": {"student.size": [0.9, 0.6]}}
    )
    trials = planning.checked_trials(config)
    models = [trial.config.student.model for trial in trials]
    assert [(model.source, model.keep) for model in models] == [("teacher_layers", 5), ("teacher_layers", 3)]
    results = tuple(
        TrialResult(number=trial.number, name=trial.name, verdict="finished", changes=dict(trial.changes))
        for trial in trials
    )
    sweep = SweepResult(url="", objective="o", more_is_better=True, trials=results, best=1, validation_rows=1)
    assert varied(sweep, {trial.number: trial for trial in trials}) == {"student.size": [0.9, 0.6]}
    best = parse_config(yaml.safe_load(best_campaign(config, trials, 2)))
    assert best.student == best.student.model_copy(update={"model": models[1], "size": None})
    based = sized(parse_config(config.model_dump(mode="json", by_alias=True) | {"student": {"size": 0.4}}))
    assert [trial.config.student.model for trial in planning.checked_trials(based)] == models
    assert parse_config(yaml.safe_load(best_campaign(based, trials, 2))).student == best.student
    keep = {"trials": [{"name": "x", "set": {"student.model.keep": 4}}]}
    (deeper,) = planning.checked_trials(based.model_copy(update={"sweep": SweepConfig.model_validate(keep)}))
    assert (deeper.config.student.model.keep, deeper.config.student.model.chosen_by) == (4, None)
    shown = [line for line in plan_sweep(config) if line.startswith(("student", "trial", "sweep"))]
    assert shown[1:3] == ["trial    1 size=0.9", "trial    2 size=0.6"] and "2 students, at most 2 ×" in shown[3]


def test_a_size_that_is_not_reached_is_a_mistake_of_its_trial(tmp_path: Path) -> None:
    """With the sizes that there are."""
    write_tiny_text_model(tmp_path / "teacher", ("a", "b"), 0)
    teacher = {"teacher": {"model": str(tmp_path / "teacher")}}
    config = _config(tmp_path, labels=teacher, sweep={"grid": {"student.size": [0.9, 0.001]}})
    with pytest.raises(ConfigError, match=r"1 of 2 trials .*\n  student\.size: .*set student\.size to .*'size=0\.001'"):
        planning.checked_trials(config)


def test_a_section_that_trials_replace_is_shown_by_what_differs(tmp_path: Path) -> None:
    """The figure has an axis a value, and none for the section, or for what all trials share."""
    models = [{"from": "config", "overrides": {"num_hidden_layers": 1}}, {"from": "teacher_layers", "keep": 1}]
    config = _config(tmp_path, sweep={"grid": {"student.model": models}})
    trials = {trial.number: trial for trial in expand(config)}
    results = tuple(
        TrialResult(number=number, name=trial.name, verdict="finished", changes=dict(trial.changes))
        for number, trial in trials.items()
    )
    sweep = SweepResult(url="", objective="o", more_is_better=True, trials=results, best=1, validation_rows=1)
    assert varied(sweep, trials) == {
        "student.model.from": ["config", "teacher_layers"],
        "student.model.keep": [None, 1],
        "student.model.overrides.num_hidden_layers": [1, None],
    }


def test_students_of_one_architecture_have_one_shape(tmp_path: Path) -> None:
    """Their settings may describe it in two ways; other widths are another shape."""

    def shape(name: str, **sizes: int) -> str:
        model = load_model(
            TeacherConfig(model=str(write_tiny_text_model(tmp_path / name, ("a", "b"), 0, **sizes))),
            task="text_classification",
        )
        save_model(model, tmp_path / "saved" / name, card="", metadata={"campaign": name})
        return shape_of(StudentRef(url=str(tmp_path / "saved" / name), fingerprint="", arm="student", labels=_labels()))

    assert shape("one") == shape("two") != shape("narrow", intermediate_size=32)


def test_a_dry_run_lists_the_trials_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that are another one again are told; nothing is written."""
    value = _value(
        tmp_path,
        student={"model": {"from": "module", "model": "ray_distill.testing.models:tiny_text_model"}},
        sweep={
            "trials": [{"name": "named", "set": {RATE: 1e-3}}],
            "grid": {RATE: [1e-3, 1e-2]},
            "stop": {"rungs": [1, 2]},
        },
    )
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(value))
    assert cli.main(["sweep", str(tmp_path / "c.yaml"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"label      1 label set(s) → {tmp_path}/out/labels"
    assert lines[1].startswith("student    from module ") and lines[2] == f"grid       {RATE}"
    assert lines[3:6] == [
        f"trial    1 named: {RATE}=0.001",
        "trial    2 learning_rate=0.001 (as trial 1: trained once)",
        "trial    3 learning_rate=0.01",
    ]
    assert "2 students, at most 2 × the budget" in lines[6]
    assert "at 1, 2 epochs the best 33% go on" in lines[6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml", "rows.jsonl"]


def test_a_campaign_without_the_section_is_told_what_to_add(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, status 1."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(_value(tmp_path, sweep=None)))
    assert cli.main(["sweep", str(tmp_path / "c.yaml")]) == 1
    assert "has no section `sweep`" in capsys.readouterr().err
