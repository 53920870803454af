"""Describe the training of a campaign's arms, and what determines the result of one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_distill.artifacts import LabelSetRef, SnapshotRef
from ray_distill.config import Campaign, LossConfig, MixtureConfig
from ray_distill.config.identity import identity
from ray_distill.storage.portable import movable
from ray_distill.students.arms import Arm
from ray_distill.students.data.answer_format import LearnFacet, learn_facet
from ray_distill.students.objective.loss_settings import plain_settings
from ray_distill.tasks.catalogue import get_task


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything a rank needs for training, as picklable values."""

    config: Campaign
    labels: LabelSetRef
    output: str
    """Folder of the students; a local path must be absolute, because ranks run in other working directories."""
    arms: tuple[str, ...] = ("student", "baseline_hard_labels", "baseline_teacher_hard_labels")
    seed: int = 0
    resume: bool = False
    """Whether exported arms, finished runs and checkpoints are reused; if there are none, training starts anew."""
    teacher_rows_url: str | None = None
    """Parquet with a ``row_id`` column: rows the teacher was fitted on, which it may not teach."""
    ceiling: SnapshotRef | None = field(default=None)
    """The teacher's own labelled rows, for the arm ``ceiling_true_labels``."""
    others: tuple[LabelSetRef, ...] = ()
    """The label sets that ``student.mixture`` names, in its order."""


def arm_plan(job: TrainingJob, arm: Arm) -> dict[str, Any]:
    """Return the plan of an arm: everything that determines its result, as plain JSON.

    An arm or run made under another plan is not reused. Labels and rows are identified by their fingerprints,
    independent of their addresses.
    """
    config, losses = job.config, losses_of(job.config, arm)
    ceiling = job.ceiling.fingerprint if arm.ceiling and job.ceiling is not None else None
    student = config.student.model_copy(
        update={"losses": losses, "ceiling": ceiling, "mixture": _by_content(config.student.mixture, job.others)}
    )
    plan = identity(student)
    for name, loss in losses.items():  # adds the defaults of the loss, which are not in the configuration
        plan["losses"][name] |= plain_settings(name, loss, learn_of(config).LOSSES)
    augment = config.snapshot.augment
    filtered = {} if augment is None or augment.most_entropy is None else {"most_entropy": augment.most_entropy}
    own = {"labels": job.labels.fingerprint, "arm": arm.name, "seed": job.seed, **filtered}
    return {**own, **movable(plan, config.output_url)}


def _by_content(mixture: MixtureConfig | None, others: Sequence[LabelSetRef]) -> MixtureConfig | None:
    """Replace the addresses of label sets by their fingerprints."""
    if mixture is None:
        return None
    named = zip(mixture.others, others, strict=True)
    return mixture.model_copy(
        update={"others": tuple(other.model_copy(update={"labels": ref.fingerprint}) for other, ref in named)}
    )


def learn_of(config: Campaign) -> LearnFacet:
    """Return how the campaign's family of answers is learnt."""
    return learn_facet(get_task(config.task).answers)


def losses_of(config: Campaign, arm: Arm) -> Mapping[str, LossConfig]:
    """Return the losses of an arm."""
    return arm.losses(config.student.losses)
