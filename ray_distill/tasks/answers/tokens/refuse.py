"""Settings that language models cannot serve."""

from dataclasses import fields
from typing import Any

from ray_distill.config import Campaign
from ray_distill.losses.catalogue import LOSSES


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
    return wrong


def _reads_layers(loss: str) -> bool:
    kind: Any = LOSSES.get(loss)
    return kind is not None and any(field.name == "layers" for field in fields(kind))
