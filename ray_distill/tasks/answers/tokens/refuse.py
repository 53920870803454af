"""Settings that language models cannot serve."""

from dataclasses import fields
from typing import Any

from ray_distill.config import Campaign, EvaluationConfig
from ray_distill.losses.catalogue import LOSSES
from ray_distill.tasks.answers.tokens import TOKENS, WRITTEN
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.inputs.pair import DECODER


def refuse(config: Campaign) -> list[str]:
    """List settings that only classifiers have, and hidden states that are not of tokens."""
    labels = config.labels
    given = {
        "labels.teacher.head": labels.teacher.head,
        "student.ceiling": config.student.ceiling,
        "snapshot.classes": config.snapshot.classes,
        "snapshot.columns.label": config.snapshot.columns.label,
    }
    wrong = [f"{name}: {config.task} has no classes; leave it out" for name, value in given.items() if value]
    if labels.hidden.pool != "token" and any(map(_reads_layers, config.student.losses)):
        wrong.append(
            f"labels.hidden.pool is {labels.hidden.pool}: a language model's states are matched token by "
            "token; set it to token, or leave the losses of hidden states out"
        )
    return wrong + _unmeasured(config)


def _unmeasured(config: Campaign) -> list[str]:
    """List limits of the gate on metrics that these settings never measure."""
    targets = get_task(config.task).inputs.answering == DECODER
    needs = {name: _missing(name, config.evaluation, targets=targets) for name in config.gate.limits or {}}
    return [f"gate.limits.{name}: it is measured only {missing}" for name, missing in needs.items() if missing]


def _missing(metric: str, settings: EvaluationConfig, *, targets: bool) -> str:
    """Return the setting without which a metric is not measured; empty if it is."""
    if TOKENS.benchmarks.find(metric) is not None:
        return "" if settings.lm_eval is not None else "with evaluation.lm_eval: set it"
    if WRITTEN.find(metric) is None:
        return ""
    if not targets:
        return "of targets that models write, and this task has none: leave it out"
    if not settings.written:
        return "with evaluation.written above 0: set it"
    overlaps = metric not in ("exact_match", "word_error_rate")
    return "with evaluation.overlap: true: set it" if overlaps and not settings.overlap else ""


def _reads_layers(loss: str) -> bool:
    kind: Any = LOSSES.get(loss)
    return kind is not None and any(field.name == "layers" for field in fields(kind))
