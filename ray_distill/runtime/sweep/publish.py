"""Publish a sweep's tables, figures, page and best campaign, as files and in MLflow."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ray_distill.config import Campaign
from ray_distill.config.load import put
from ray_distill.config.trials import SIZES, Trial, leaves_of, value_at
from ray_distill.evaluation.report.plots import figure_png
from ray_distill.evaluation.sweep.compare import SweepResult, paths_of, to_csv
from ray_distill.evaluation.sweep.html import markdown, render_sweep
from ray_distill.evaluation.sweep.plots import frontier_figure, parallel_figure, spread
from ray_distill.redact import redacted
from ray_distill.runtime.core.session import Session
from ray_distill.runtime.sweep.resolve_trials import labelling
from ray_distill.storage import files
from ray_distill.storage.scratch import Scratch

LOSSES, RATES = "student.losses", "student.training.learning_rate"


def publish(session: Session, result: SweepResult, trials: Mapping[int, Trial], facts: Mapping[str, str]) -> None:
    """Write tables, figures and page below ``result.url``, and record them on the sweep's run.

    Args:
        session: the sweep's session.
        result: the sweep's result.
        trials: by number.
        facts: provenance of the page.
    """
    values = varied(result, trials)
    best = best_campaign(session.config, list(trials.values()), result.best)
    page = render_sweep(
        result,
        title=session.config.campaign,
        values=values,
        provenance=facts,
        rerun=f"ray-distill run {shlex.quote(files.join(result.url, 'best.yaml'))}",
    )
    made: dict[str, bytes] = {
        "results.json": files.json_bytes(result.to_dict()),
        "results.csv": to_csv(result).encode(),
        "sweep.html": page.encode(),
        "best.yaml": best.encode(),
        "parallel.png": figure_png(parallel_figure(result, values)),
    }
    if any(trial.efficiency is not None for trial in result.own):
        made["frontier.png"] = figure_png(frontier_figure(result))
    with Scratch("sweep") as scratch:
        for name, data in made.items():
            files.write_bytes(files.join(result.url, name), data)
            (scratch.path / name).write_bytes(data)
            session.parent.artifact(scratch.path / name)
    winner = result.winner
    session.parent.metrics(
        {f"best_{name}": value for name, value in winner.metrics.items()}
        | {f"trials_{verdict}": float(result.count(verdict)) for verdict in ("finished", "stopped", "failed")}
    )
    if winner.efficiency is not None:
        session.parent.metrics(
            {
                "best_parameters": float(winner.efficiency.parameters),
                "best_latency_ms_p50": winner.efficiency.latency_ms_p50,
            }
        )
    session.parent.tags({"best_trial": winner.name, "objective": result.objective, "description": markdown(result)})


def varied(result: SweepResult, trials: Mapping[int, Trial]) -> dict[str, Sequence[Any]]:
    """Return the values of the trials in ``result.own`` at each path that differs between them.

    A section that a trial replaces is the paths of its values.
    """
    rows = list[dict[str, Any]]()
    for trial in result.own:
        one = trials[trial.number]
        # A size that a trial sets is a model in its configuration.
        changed = {path: one.changes.get(path, value_at(one.config, path)) for path in paths_of(result.trials)}
        leaves = (pair for path, item in changed.items() for pair in leaves_of({path: item}).items())
        rows.append(redacted({path: value for path, value in leaves if value != {}}))
    found = {path: [row.get(path) for row in rows] for path in dict.fromkeys(path for row in rows for path in row)}
    return {path: values for path, values in found.items() if spread(values)}


def best_campaign(base: Campaign, trials: Sequence[Trial], best: int) -> str:
    """Return the best trial as a campaign's YAML: the sweep's files, one student, all stages.

    Where trials differ in their learning rates, it has all of these: each arm then keeps its best on validation, the
    baselines too, so that the student is not the only one that is tuned.
    """
    trial = trials[best - 1]
    value = base.model_dump(mode="json", by_alias=True, exclude={"sweep"}, exclude_unset=True)
    for path, item in trial.changes.items():
        if path != "seed":
            put(value, path, item)
    if base.student.model.chosen_by is not None or any(path in SIZES for path in trial.changes):
        _put_model(value, trial.config)
    if any(path.startswith(f"{LOSSES}.") for path in trial.changes):
        # Losses that are not given are defaults, which one loss alone would replace.
        losses = trial.config.student.losses.items()
        put(value, LOSSES, {name: loss.model_dump(mode="json", by_alias=True) for name, loss in losses})
    rates = _rates(trial, trials)
    if rates:
        put(value, RATES, rates)
    shown = redacted(value)
    removed = shown != json.loads(json.dumps(value))
    value = shown
    value["labels"]["store"] = next(iter(labelling(base, [trial]).values())).labels.store
    heading = (
        f"# Trial {trial.number} of the sweep of {base.campaign}: {trial.name}. The seed is the campaign's: it "
        "decides the snapshot too.\n"
    )
    if rates:
        heading += "# Each arm, baselines included, tries all rates of the sweep, and keeps its best one.\n"
    if removed:
        heading += "# Put back the secrets for which … stands: passwords, keys and signatures are not written.\n"
    return heading + yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def _rates(best: Trial, trials: Sequence[Trial]) -> list[float]:
    """Return the rates of all trials, ascending.

    It is empty where they are those of the best trial, or where its arms try rates of their own.
    """
    given = {rate for trial in trials for rate in trial.config.student.training.learning_rate}
    own = best.config.student.training.learning_rate
    return sorted(given) if own and given != set(own) else []


def _put_model(value: dict[str, Any], config: Campaign) -> None:
    """Put a trial's model into a campaign's plain values, in place of a size."""
    model = config.student.model.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    student = {name: item for name, item in value["student"].items() if name not in ("size", "latency_ms")}
    value["student"] = {**student, "model": {"from": config.student.model.source, **model}}
