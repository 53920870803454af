"""Check a campaign, and describe what `run` or `sweep` would do: ``--dry-run``.

Nothing that only a run needs is imported, so the answer comes in seconds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ray_distill.config import Campaign, TrainingConfig
from ray_distill.config.trials import Trial
from ray_distill.promotion.rules import in_words, limits_of
from ray_distill.runtime.core.class_names import describe_classes
from ray_distill.runtime.core.session import absolute, record_line
from ray_distill.runtime.model_checks.choose_student import describe_student
from ray_distill.runtime.model_checks.decide import decided
from ray_distill.runtime.stages.judge import requested_corruptions
from ray_distill.runtime.stages.preflight import preflight
from ray_distill.runtime.sweep.check_trial_models import check_trial_models
from ray_distill.runtime.sweep.preset import budgets, with_preset
from ray_distill.runtime.sweep.resolve_trials import checked_trials, duplicates, labelling
from ray_distill.snapshots.sources.resolve import describe_sources
from ray_distill.storage import files
from ray_distill.students.arms import campaign_arms
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.view_kinds import chosen_kinds


def plan(config: Campaign) -> list[str]:
    """Describe what `run` would do, one line per stage; run nothing."""
    config = decided(config)
    notes = (*preflight(config, call=True), *_unmeasured(config))
    task, damages = get_task(config.task), requested_corruptions(config)
    sources = describe_sources(config.snapshot)
    training, arms = config.student.training, campaign_arms(config, labelled=_may_teach(config))
    lines = [
        f"snapshot  {_counted(sources)} of {task.inputs.column}{_own(config)}{describe_classes(config)} "
        f"→ {config.output_url}/snapshots",
        *_plan_views(config),
        *_plan_writing(config),
        f"label     {config.labels.teacher.model}, {config.labels.signal.estimator}, "
        f"T {', '.join(f'{t:g}' for t in config.labels.signal.temperatures)} → {config.store_url}",
        f"student   {describe_student(config)}",
        f"train     {', '.join(arms)}: {_workers(training)} × {training.engine} ZeRO "
        f"{training.zero_stage}, {training.precision}, {_length(training)} → {config.output_url}/students",
        f"evaluate  test split, {len(damages)} corruptions × {len(config.evaluation.severities)} severities",
        _plan_gate(config),
    ]
    lines.append(f"record    {record_line(absolute(config))}")
    return [*lines, *(f"note      {note}" for note in notes)]


def plan_sweep(config: Campaign) -> list[str]:
    """Describe what `sweep` would do, one line per trial; run nothing."""
    config = with_preset(decided(config))
    trials, own = checked_trials(config), absolute(config)
    notes = check_trial_models(own, trials, call=True)
    lines = [*_sweep_lines(own, trials), f"record     {record_line(own)}"]
    return [*lines, *(f"note       {note}" for note in notes)]


def _sweep_lines(config: Campaign, trials: Sequence[Trial]) -> list[str]:
    assert config.sweep is not None
    same, sets = duplicates(trials), labelling(config, trials)
    stop, cost = config.sweep.stop, budgets(config, [one for one in trials if one.number not in same])
    rule = (
        "none is stopped"
        if stop is None
        else (f"at {', '.join(f'{rung:g}' for rung in stop.rungs)} epochs the best {stop.keep:.0%} go on")
    )
    named = {trial.name for trial in config.sweep.trials}
    lines = []
    for trial in trials:
        changes = ", ".join(f"{path}={value}" for path, value in trial.changes.items())
        title = f"{trial.name}: {changes}" if trial.name in named else trial.name
        again = f" (as trial {same[trial.number]}: trained once)" if trial.number in same else ""
        lines.append(f"trial {trial.number:>4} {title}{again}")
    if config.sweep.grid:
        lines.insert(0, f"grid       {' × '.join(config.sweep.grid)}")
    return [
        f"label      {len(sets)} label set(s) → {', '.join(sorted(one.store_url for one in sets.values()))}",
        f"student    {describe_student(config)}",
        *lines,
        f"sweep      {len(trials) - len(same)} students, at most {cost:g} × the budget of the configured one, by "
        f"{config.sweep.objective or 'what they are judged by'} on the validation split; {rule} → "
        f"{files.join(config.output_url, 'sweep')}",
    ]


def _length(training: TrainingConfig) -> str:
    """Return how long each arm trains, and at which rates."""
    budget, rates = training.open_budget, ", ".join(f"{rate:g}" for rate in training.learning_rate)
    if budget is None:
        length = f"{training.epochs:g} passes"
    else:
        least, most = budget.passes
        length = f"until nothing improves ({least:g} to {most:g} passes, at most {budget.examples:,} examples)"
    return f"{length}, {f'rate {rates}' if rates else 'rates tried'}"


def _counted(sources: Sequence[Mapping[str, Any]]) -> str:
    """Count the source files of traffic; files of rows to leave out are not sources."""
    counts = Counter(str(source["role"]) for source in sources)
    excluded = f" less the rows of {counts['exclude']} file(s)" if counts["exclude"] else ""
    return f"{counts['source']} source file(s){excluded}"


def _plan_gate(config: Campaign) -> str:
    """Return the rules in force, as the verdict will list them."""
    rules = [f"{name} ({in_words(limit)})" for name, limit in limits_of(config.gate, config.task).items()]
    trained = {*campaign_arms(config, labelled=_may_teach(config)), "teacher", "champion"}
    rules += [f"beat {arm}" for arm in config.gate.beat if arm in trained]
    return f"promote   {', '.join(rules) or 'no rules, so no verdict but HOLD'}; alias {config.gate.alias}"


def _unmeasured(config: Campaign) -> list[str]:
    """Return a sentence if the gate needs labels of test rows, and no column has them."""
    answers, own = get_task(config.task).answers, config.snapshot.own_sources.get("test")
    columns = (own and own.columns) or config.snapshot.columns
    if columns.label is not None or answers.is_labelled(0):
        return []
    known = {metric.name for metric in answers.metrics.metrics if not metric.of_teacher}
    needed = [name for name in limits_of(config.gate, config.task) if name in known]
    if not needed:
        return []
    return [
        f"no test row has a label, so {' and '.join(needed)}, which the gate limits, cannot be measured, and no "
        "student is promoted: give snapshot.test a source with labels"
    ]


def _may_teach(config: Campaign) -> bool:
    """Return whether train rows can have truths: by a column of labels, or by the inputs."""
    return config.snapshot.columns.label is not None or get_task(config.task).answers.is_labelled(0)


def _own(config: Campaign) -> str:
    own = config.snapshot.own_sources
    return "".join(f"; {name} has a source of its own" for name in own)


def _workers(training: TrainingConfig) -> str:
    least, most = training.least_workers, training.most_workers
    return str(least) if least == most else f"{least} to {most}"


def _plan_views(config: Campaign) -> list[str]:
    settings = config.snapshot.augment
    if settings is None:
        return []
    kinds = ", ".join(f"{one.name} {one.strength:g}" for one in chosen_kinds(config, get_task(config.task)))
    limit = settings.most_entropy
    unsure = "" if limit is None else f"; none above {limit:.0%} of the largest entropy teaches"
    return [f"augment   {settings.views} views of each train row, labelled like rows: {kinds}{unsure}"]


def _plan_writing(config: Campaign) -> list[str]:
    settings = config.sequences
    if settings is None:
        return []
    return [
        f"write     {config.labels.teacher.model}, {settings.method}, {settings.candidates} for a prompt of "
        f"{' and '.join(settings.splits)}, up to {settings.new_tokens} tokens, keep {settings.keep} → "
        f"{config.output_url}/sequences"
    ]
