"""State, from planned counts, what the labelled test rows of a campaign can establish."""

from ray_distill.config import Campaign
from ray_distill.evaluation.measures.power import establishable
from ray_distill.promotion.rules import limits_of
from ray_distill.snapshots.labelled_rows import labelled_rows
from ray_distill.snapshots.reader import Snapshot
from ray_distill.tasks.catalogue import get_task


def what_test_rows_establish(config: Campaign, opened: Snapshot) -> str:
    """Return a sentence about the least difference that the test split can establish."""
    answers = get_task(config.task).answers
    counts = labelled_rows(opened.manifest)["test"]
    return f"test split: {establishable(counts.labelled, answers, allowed=allowed_loss(config))}"


def allowed_loss(config: Campaign) -> float | None:
    """Return the loss in the headline metric that the gate allows beside a faultless teacher.

    None where it depends on the teacher's value.
    """
    answers = get_task(config.task).answers
    limit = limits_of(config.gate, config.task).get(answers.headline)
    if limit is None:
        return None
    if limit.teacher_margin is not None:
        return limit.teacher_margin
    high = answers.metrics[answers.headline].high
    return None if limit.relative is None or high != 1.0 else max(0.0, 1.0 - limit.relative)
