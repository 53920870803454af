"""The task: readings times classes."""

from ray_distill.tasks.answers.classes import CLASSES
from ray_distill.tasks.task import Task
from sensor_readings.inputs import READINGS

machines = Task(
    name="sensor_readings.tasks:machines",
    inputs=READINGS,
    answers=CLASSES,
    auto_class="AutoModelForSequenceClassification",
)
