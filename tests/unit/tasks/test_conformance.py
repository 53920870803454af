"""Every task of the catalogue passes the conformance suite that users run on theirs."""

from collections.abc import Callable

import pytest

from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.tasks import CHECKS, TaskCase
from tests.labs.task_cases import case_of


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_a_task_of_the_catalogue_conforms(check: Callable[[TaskCase], None], task: str) -> None:
    """Inputs, labels, learning, judgement, page and serving."""
    check(case_of(task))
