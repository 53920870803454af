"""Break a task of the conformance suite in one way, and require the suite to find it."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import ModuleType
from typing import Any

import pytest

from ray_distill.tasks.answers.family import Answers
from ray_distill.testing.tasks import CHECKS, TaskCase
from tests.labs.task_cases import case_of


@dataclass(frozen=True, kw_only=True)
class ChangedAnswers(Answers):
    """A family of answers, some of whose facets are other modules."""

    changed: Mapping[str, ModuleType] = field(default_factory=dict)

    def facet(self, name: str) -> ModuleType:
        return self.changed.get(name) or super().facet(name)


def with_inputs(case: TaskCase, **changes: Any) -> TaskCase:
    """Return the case with some functions of its inputs replaced."""
    return replace(case, task=replace(case.task, inputs=replace(case.task.inputs, **changes)))


def with_facet(case: TaskCase, facet: str, **changes: Any) -> TaskCase:
    """Return the case with some names of a facet replaced."""
    own = case.task.answers
    module = ModuleType(facet)
    module.__dict__.update({**vars(own.facet(facet)), **changes})
    values = {item.name: getattr(own, item.name) for item in fields(own)} | {"changed": {facet: module}}
    return with_answers(case, ChangedAnswers(**values))


def with_answers(case: TaskCase, answers: Answers) -> TaskCase:
    """Return the case with another family of answers."""
    return replace(case, task=replace(case.task, answers=answers))


def assert_found(
    check: str, broken: TaskCase, match: str, monkeypatch: pytest.MonkeyPatch, raises: type[Exception] = AssertionError
) -> None:
    """Require a check to fail on a broken case for the expected reason, and to pass on the sound one."""
    CHECKS[check](case_of("text_classification"))
    module = ModuleType("broken_tasks_of_the_conformance_suite")
    module.task = broken.task  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    config = broken.config.model_copy(update={"task": f"{module.__name__}:task"})
    with pytest.raises(raises, match=match):
        CHECKS[check](replace(broken, config=config))
