"""Build a campaign's student, or open the head of one too large to be built here."""

from typing import Any

import torch

from ray_distill.config import Campaign
from ray_distill.errors import ConfigError
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.models.core.checkpoint_files import check_files, open_checkpoint, read_metadata
from ray_distill.models.core.fingerprint import count_parameters
from ray_distill.models.core.model import Model
from ray_distill.models.core.module_function import is_factory
from ray_distill.models.io.load import as_config, read_config
from ray_distill.models.students.build import build_student, require_start
from ray_distill.models.students.kind import StudentKind
from ray_distill.models.students.layer_copy import fresh
from ray_distill.models.students.measured import NOTHING_MEASURED
from ray_distill.models.students.shape import shape_student
from ray_distill.runtime.model_checks.sizes import TRAINED_PARAMETERS, is_small
from ray_distill.tasks.catalogue import get_task

#: Names of classes that are not known yet.
STAND_IN = ("0", "1")


def open_student(config: Campaign, space: AnswerSpace) -> Model | None:
    """Build the campaign's student as training will; None where it is too large.

    Measurements that training will make are replaced by stand-ins. The head of a large student is opened:
    its config, its tokenizer and its classes are compared with the teacher's.

    Args:
        config: the campaign.
        space: the teacher's classes.

    Raises:
        ConfigError, ModelError, StorageError: as `build_student`.
    """
    own, model = get_task(config.task), config.student.model
    width = None if space.names else space.size
    if not _is_small(config):
        kind = own.answers.model.student(
            model, task=own, classes=space.names, width=width, teacher=config.labels.teacher, seed=config.seed
        )
        if _parameters(config, kind) > TRAINED_PARAMETERS or not _is_read_here(config):
            return None
    return build_student(
        model,
        task=config.task,
        classes=space.names,
        teacher=config.labels.teacher,
        seed=config.seed,
        vocabulary=width,
        measured=NOTHING_MEASURED,
    )


def check_shape(config: Campaign) -> None:
    """Check a student made of its teacher, whose classes are not known: all but its head.

    Raises:
        ConfigError, ModelError, StorageError: as `build_student`.
    """
    own, model, teacher = get_task(config.task), config.student.model, config.labels.teacher
    if model.source not in ("module", "checkpoint"):
        _open_head(
            config,
            own.answers.model.student(model, task=own, classes=STAND_IN, width=None, teacher=teacher, seed=config.seed),
        )


def count_parameters_of(config: Campaign, classes: tuple[str, ...]) -> int:
    """Count the parameters of the campaign's student; only a function's model is made.

    Measurements that training will make are replaced by stand-ins: of a share of the tokens all are counted.

    Args:
        config: the campaign.
        classes: names of the classes.

    Raises:
        ConfigError, ModelError, StorageError: as `build_student`.
    """
    own, model, teacher = get_task(config.task), config.student.model, config.labels.teacher
    if model.source == "module":
        found = build_student(model, task=config.task, classes=classes, teacher=teacher, seed=config.seed)
        return count_parameters(found.module)
    kind = own.answers.model.student(model, task=own, classes=classes, width=None, teacher=teacher, seed=config.seed)
    return _parameters(config, kind)


def _is_small(config: Campaign) -> bool:
    """Return whether the student is small, whatever its config has."""
    model = config.student.model
    if model.source == "module":
        return True
    return model.source == "checkpoint" and is_small(str(model.model)) and not is_factory(str(model.model))


def _is_read_here(config: Campaign) -> bool:
    """Return whether the weights that the student starts from are small enough to be read."""
    model = config.student.model
    if model.source == "checkpoint":
        return is_small(str(model.model))
    return (model.source == "config" and model.embeddings == "new") or is_small(config.labels.teacher.model)


def _parameters(config: Campaign, kind: StudentKind) -> int:
    """Open the student's head, and count its parameters without making them."""
    student_config = _open_head(config, kind)
    with torch.device("meta"):
        module = fresh(student_config, config.labels.teacher, config.task, config.seed)
    return count_parameters(module)


def _open_head(config: Campaign, kind: StudentKind) -> Any:
    """Return the transformers config of a student, after all checks that need no weights."""
    model = config.student.model
    if model.source == "checkpoint":
        return _open_checkpoint(config, kind)
    teacher = config.labels.teacher.model_copy(
        update={"max_length": model.max_length or config.labels.teacher.max_length}
    )
    require_start(model, teacher)
    with open_checkpoint(teacher.model, weights=False) as folder:
        return shape_student(model, kind, folder, own=teacher, measured=NOTHING_MEASURED).config


def _open_checkpoint(config: Campaign, kind: StudentKind) -> Any:
    own = as_config(config.student.model)
    if is_factory(own.model):
        raise ConfigError(f"student.model.model {own.model} is a function: set student.model.from to module")
    with open_checkpoint(own.model, weights=False) as folder:
        if read_metadata(folder).get("factory"):
            raise ConfigError(
                f"{own.model} was saved from a function: set student.model.from to module with that function"
            )
        if is_small(own.model):
            check_files(folder, own.model)
        found = read_config(folder, own)
        kind.checkpoint_processor(folder, found, own)
        kind.check_config(found, own.model)
    return found
