"""Define the arms of a campaign, which have equal steps and equal tuning.

The arms are the student and the baselines with which it is compared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ray_distill.config import Campaign, LossConfig
from ray_distill.errors import ConfigError, TrainingError
from ray_distill.students.data.examples import Examples
from ray_distill.students.objective.loss_settings import LossKinds, follows_labels
from ray_distill.students.order.cursor import Index

Losses = Mapping[str, LossConfig]


def _true_labels(student: Losses) -> Losses:
    """Return true labels alone."""
    return {"hard": LossConfig()}


def _teachers_choice(student: Losses) -> Losses:
    """Return the student's losses with the teacher's first choice in place of its distribution.

    True labels stay, so that the arm has the student's rows, and differs from it in soft labels (and hidden states)
    alone.
    """
    soft = student.get("soft")
    found = {"teacher_hard": LossConfig() if soft is None else LossConfig(weight=soft.weight)}
    return found | ({"hard": student["hard"]} if "hard" in student else {})


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One model to train."""

    name: str
    losses: Callable[[Losses], Losses] = dict
    """Returns its losses, given those of the student."""
    ceiling: bool = False
    """True: the arm is trained on the teacher's own labelled rows, not on the snapshot's train split."""


ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(name="student"),
        Arm(name="baseline_hard_labels", losses=_true_labels),
        Arm(name="baseline_teacher_hard_labels", losses=_teachers_choice),
        Arm(name="ceiling_true_labels", losses=_true_labels, ceiling=True),
    )
}


def campaign_arms(config: Campaign, *, labelled: bool = True) -> tuple[str, ...]:
    """Return the arms of a campaign; without true labels there is no hard-labels baseline."""
    names = ["student", "baseline_teacher_hard_labels"]
    if labelled:
        names.append("baseline_hard_labels")
    if config.student.ceiling:
        names.append("ceiling_true_labels")
    return tuple(names)


def arm_by_name(name: str) -> Arm:
    """Return the arm of that name.

    Raises:
        ConfigError: there is no arm of that name.
    """
    if name not in ARMS:
        raise ConfigError(f"unknown arm {name!r}; there are {', '.join(ARMS)}")
    return ARMS[name]


def arm_rows(name: str, losses: Mapping[str, LossConfig], data: Examples, kinds: LossKinds) -> Index:
    """Return the rows an arm trains on: those to which at least one of its losses gives weight.

    A loss on true labels weighs labelled rows, every other loss weighs the rows the teacher may teach.

    Raises:
        TrainingError: there are no such rows.
    """
    use = np.zeros(data.rows, dtype=np.bool_)
    for loss in losses:
        use |= data.labelled if follows_labels(loss, kinds) else data.distil
    rows = np.flatnonzero(use)
    if len(rows) == 0:
        raise TrainingError(
            f"the arm {name} has no rows: of {data.rows}, {int(data.labelled.sum())} have true labels and the "
            f"teacher may teach {int(data.distil.sum())}, and its losses are {', '.join(losses)}; leave the arm out"
        )
    return rows
