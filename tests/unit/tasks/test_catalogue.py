"""Tasks by name: those of the catalogue, and a user's own by ``module:object``."""

from pathlib import Path

import pytest

from ray_distill.config import parse_config
from ray_distill.errors import ConfigError
from ray_distill.tasks.catalogue import TASKS, get_task

OWN = """
from dataclasses import replace
from ray_distill.tasks.catalogue import TASKS

task = replace(TASKS["text_classification"], name="my_texts")
number = 7
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's, on the path."""
    (tmp_path / "own_tasks_of_the_catalogue_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_tasks_of_the_catalogue_test"


def test_each_task_has_its_own_name() -> None:
    """The name that a configuration uses."""
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}


def test_a_users_own_task_is_imported(own: str) -> None:
    """A campaign names it, and it is used as those of the catalogue are."""
    task = get_task(f"{own}:task")
    assert task.name == "my_texts" and task.inputs is TASKS["text_classification"].inputs
    campaign = parse_config(
        {"campaign": "c", "task": f"{own}:task", "snapshot": {"source": "s"}, "labels": {"teacher": {"model": "t"}}}
    )
    assert task.refuse(campaign) == [] and campaign.task == f"{own}:task"


def test_a_task_that_cannot_be_used_is_refused_with_the_reason(own: str) -> None:
    """Not to be imported, no such object, not a task, or a name with a typing error."""
    for name, message in {
        "no_such_module:task": "cannot import no_such_module:task: ModuleNotFoundError",
        f"{own}:missing": "AttributeError",
        f"{own}:number": "is a int, not a ray_distill.tasks.task.Task",
        "text_clasification": "did you mean text_classification or",
        "poetry": f"there is no task 'poetry': use {' or '.join(TASKS)}, or package.module:object",
    }.items():
        with pytest.raises(ConfigError, match=message):
            get_task(name)
