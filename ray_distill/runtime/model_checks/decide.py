"""Decide what a campaign leaves open: the stored form of labels, the student's shape.

The campaign is then the one that a file with these settings describes, with the same keys.
"""

from ray_distill.config import Campaign
from ray_distill.runtime.model_checks.choose_student import sized
from ray_distill.tasks.catalogue import get_task
from ray_distill.teachers.engines import engine_of


def decided(config: Campaign) -> Campaign:
    """Return the campaign with an estimator of labels, and a model for the student's size.

    Raises:
        ConfigError, ModelError, StorageError: as `sized`.
    """
    return sized(_with_stored_form(config))


def _with_stored_form(config: Campaign) -> Campaign:
    labels, model = config.labels, get_task(config.task).answers.model
    if "estimator" in labels.signal.model_fields_set:
        return config
    given = engine_of(labels.teacher).estimators.get(model.FAMILY, ())
    signal = model.stored_form(labels.signal, given)
    return config.model_copy(update={"labels": labels.model_copy(update={"signal": signal})})
