"""Conformance of a task's settings: the table of metrics, and what it refuses."""

from ray_distill.testing.tasks.case import TaskCase


def check_metrics(case: TaskCase) -> None:
    """Require one table of metrics with the headline, the limits and all shown or measured."""
    answers = case.task.answers
    used = {answers.headline, *answers.beside, *answers.robust, *answers.limits}
    assert used <= set(answers.metrics.names), f"not in the table: {sorted(used - set(answers.metrics.names))}"
    assert answers.metrics[answers.headline].higher_is_better is not None, "a headline has a better side"


def check_refusal(case: TaskCase) -> None:
    """Require a good campaign to pass, and each refusal to begin with the path of a setting."""
    refused = case.task.refuse(case.config)
    assert refused == [], f"a good campaign is refused: {refused}"
    column = "no_such_target" if case.config.snapshot.columns.target is None else None
    columns = case.config.snapshot.columns.model_copy(update={"target": column})
    snapshot = case.config.snapshot.model_copy(update={"columns": columns})
    wrong = case.task.refuse(case.config.model_copy(update={"snapshot": snapshot}))
    assert any(line.startswith("snapshot.columns.target") for line in wrong), f"refused as {wrong}"
