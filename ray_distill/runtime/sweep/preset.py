"""Make the trials of ``sweep: auto``: the configured student, and what may well help it.

Each trial changes one thing, as far as the configuration, the labels and the task allow it, in the order in which they
are tried: hidden states beside soft labels or none, another declared temperature, other weights of true labels, layers
by importance, a longer training, other rates. What training would refuse is left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray_distill.config import Campaign, StopConfig, SweepConfig, TrialConfig
from ray_distill.config.trials import Trial, expand
from ray_distill.errors import DistillError
from ray_distill.runtime.stages.preflight import check
from ray_distill.tasks.catalogue import get_task

#: Name of the trial that changes nothing.
AS_CONFIGURED = "as configured"
#: Most trials.
MOST = 8
#: Factor between a configured rate and those beside it.
RATE_STEP = 3.0
#: Share of the passes after which a trial is compared for the first and the second time, where epochs are given.
RUNGS = (0.25, 0.5)
#: Passes of that, where a budget is open, by its least passes.
OPEN_RUNGS = (2.0, 4.0)
#: Share of the trials at a rung that goes on.
KEEP = 0.5

Changes = dict[str, Any]


def with_preset(config: Campaign) -> Campaign:
    """Return the campaign with the trials and the stopping rule of its preset, if it has one.

    Args:
        config: with a concrete student.
    """
    sweep = config.sweep
    if sweep is None or sweep.preset is None:
        return config
    chosen = [TrialConfig(name=name, set=changes) for name, changes in _accepted(config)]
    taken = {trial.name for trial in sweep.trials}
    trials = (*(trial for trial in chosen[:MOST] if trial.name not in taken), *sweep.trials)
    stop = sweep.stop or _stop(config)
    changed = {"preset": None, "trials": trials, "stop": stop}
    return config.model_copy(update={"sweep": sweep.model_copy(update=changed)})


def budgets(config: Campaign, trials: Sequence[Trial]) -> float:
    """Return the most that trials cost, in budgets of the configured student.

    Trials that differ in their epochs count by these, others as one; so do rates that are all trained to the end.
    """
    own = config.student.training

    def cost(trial: Trial) -> float:
        training = trial.config.student.training
        passes = training.epochs / own.epochs if training.epochs and own.epochs else 1.0
        return passes * max(1, len(training.learning_rate)) / max(1, len(own.learning_rate))

    return sum(map(cost, trials))


def _stop(config: Campaign) -> StopConfig | None:
    training = config.student.training
    if len(training.learning_rate) > 1:
        return None  # a trial that may be stopped has one rate
    budget = training.open_budget
    if budget is None:
        assert training.epochs is not None
        return StopConfig(rungs=tuple(share * training.epochs for share in RUNGS), keep=KEEP)
    return StopConfig(rungs=tuple(times * budget.passes[0] for times in OPEN_RUNGS), keep=KEEP)


def _accepted(config: Campaign) -> Iterator[tuple[str, Changes]]:
    """Yield the trials that training accepts, and the first: its mistakes are the campaign's."""
    yield AS_CONFIGURED, {"seed": config.seed}
    for name, changes in _candidates(config):
        alone = SweepConfig(trials=(TrialConfig(name=name, set=changes),))
        try:
            (trial,) = expand(config.model_copy(update={"sweep": alone}))
            check(trial.config)
        except DistillError:
            continue
        yield name, changes


def _candidates(config: Campaign) -> Iterator[tuple[str, Changes]]:
    yield from _hidden(config)
    yield from _temperatures(config)
    yield from _true_labels(config)
    model, training = config.student.model, config.student.training
    if model.source == "teacher_layers" and model.layers == "evenly":
        yield "layers by importance", {"student.model.layers": "importance"}
    if training.epochs is not None:
        yield "twice as long", {"student.training.epochs": 2 * training.epochs}
    elif training.open_budget is not None:
        yield "until still less improves", {"student.training.budget.gain": training.open_budget.gain / 5}
    if len(training.learning_rate) == 1:
        for name, factor in (("lower rate", 1 / RATE_STEP), ("higher rate", RATE_STEP)):
            rate = float(f"{training.learning_rate[0] * factor:.2g}")
            yield name, {"student.training.learning_rate": rate}


def _hidden(config: Campaign) -> Iterator[tuple[str, Changes]]:
    """Yield a term of hidden states that are stored and unused, or none where they are used."""
    used = config.student.losses.get("hidden")
    if used is not None and used.ever_counts:
        yield "without hidden states", {"student.losses.hidden.weight": 0.0}
    elif used is None and config.labels.hidden.layers:
        yield "hidden states too", {"student.losses.hidden": {"weight": 1.0, "kind": "cosine", "layers": "last"}}


def _temperatures(config: Campaign) -> Iterator[tuple[str, Changes]]:
    """Yield the declared temperatures at which the student does not learn yet."""
    soft = config.student.losses.get("soft")
    if soft is None:
        return
    own = soft.settings.get("temperature", 1)
    for temperature in config.labels.signal.temperatures[:3]:
        if temperature != own:
            yield f"temperature {temperature:g}", {"student.losses.soft.temperature": temperature}


def _true_labels(config: Campaign) -> Iterator[tuple[str, Changes]]:
    """Yield more weight for true labels, and none, where rows have them."""
    soft, hard = _weight(config, "soft"), _weight(config, "hard")
    labelled = config.snapshot.columns.label is not None or get_task(config.task).answers.is_labelled(0)
    if not labelled or not soft:
        return
    if hard is None or hard < soft:
        yield "true labels weigh as much", {"student.losses.hard.weight": soft}
    if hard:
        yield "soft labels alone", {"student.losses.hard.weight": 0.0}


def _weight(config: Campaign, loss: str) -> float | None:
    """Return a constant weight of a loss; 0 without the loss, None if it changes."""
    losses: Mapping[str, Any] = config.student.losses
    if loss not in losses:
        return 0.0
    weight = losses[loss].weight
    return weight if isinstance(weight, float) else None
