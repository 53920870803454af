"""A task of somebody's own, from a package outside of this one, passes the conformance suite."""

from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest

from ray_distill.config import parse_config
from ray_distill.config.student import StudentModel
from ray_distill.models.io.load import load_model
from ray_distill.tasks.catalogue import get_task
from ray_distill.testing.tasks import CHECKS, TaskCase, class_answers
from tests.labs import own_task
from tests.labs.task_cases import LABELS, ROWS, row_ids


@pytest.fixture(scope="module")
def case() -> Iterator[TaskCase]:
    with pytest.MonkeyPatch.context() as patch:
        own_task.put_on_path(patch)
        texts = [text for text, _ in own_task.readings(ROWS, seed=1)]
        student = StudentModel.model_validate(
            {"from": "module", "model": "sensor_readings.models:student", "arguments": {"classes": own_task.CLASSES}}
        )
        config = {
            "campaign": "machines",
            "task": own_task.TASK,
            "snapshot": {"source": "s"},
            "labels": {"teacher": {"model": "sensor_readings.models:teacher"}, "hidden": {"layers": [1]}},
        }
        yield TaskCase(
            task=get_task(own_task.TASK),
            teacher=load_model("sensor_readings.models:teacher", task=own_task.TASK),
            student=load_model(student, task=own_task.TASK),
            rows=pa.table({"row_id": row_ids(ROWS), "readings": texts, "label": LABELS}),
            config=parse_config(config),
            classes=own_task.CLASSES,
            requests=tuple(texts[:3]),
            answered=class_answers,
        )


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_a_task_of_ones_own_conforms(check: Callable[[TaskCase], None], case: TaskCase) -> None:
    """Inputs of its own, with the classes of the package."""
    check(case)
