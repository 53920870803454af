"""Find the names of a campaign's classes: those of the campaign, else those of its teacher."""

from ray_distill.config import Campaign
from ray_distill.errors import ModelError
from ray_distill.models.core.module_function import is_factory
from ray_distill.models.io.teacher_names import TeacherNames, checkpoint_names
from ray_distill.redact import lasting
from ray_distill.tasks.catalogue import get_task


def with_teacher_names(config: Campaign) -> Campaign:
    """Return the campaign with names for the outputs of a teacher that has only generic ones.

    They are those of ``snapshot.classes``, else the numbers of the outputs. Where sizes differ nothing is changed, and
    the family refuses the teacher with both sizes.

    Raises:
        ModelError, StorageError: as `checkpoint_names`.
    """
    labels = config.labels
    found = checkpoint_names(labels.teacher, task=config.task)
    if found is None or not found.generic or labels.teacher.classes is not None:
        return config
    names = config.snapshot.classes or numbers(found)
    if len(names) != len(found.names):
        return config
    teacher = labels.teacher.model_copy(update={"classes": names})
    return config.model_copy(update={"labels": labels.model_copy(update={"teacher": teacher})})


def teacher_names(config: Campaign) -> TeacherNames | None:
    """Return the names that the campaign gives a checkpoint's classes, else its own."""
    found, given = checkpoint_names(config.labels.teacher, task=config.task), config.labels.teacher.classes
    if found is None or given is None or (found.generic and given == numbers(found)):
        return found
    return TeacherNames(names=given, generic=False)


def classes_key(config: Campaign) -> object:
    """Return what decides the classes of a snapshot besides its settings; calls no function."""
    teacher = config.labels.teacher
    if config.snapshot.classes is not None or not get_task(config.task).answers.reads_labels():
        return None
    if is_factory(teacher.model):
        return lasting({"function": teacher.model, "arguments": teacher.arguments, "classes": teacher.classes})
    found = teacher_names(config)
    return None if found is None else list(found.names)


def unnamed_classes(config: Campaign) -> list[str]:
    """Return one sentence if the classes have no names, or the teacher cannot be read."""
    snapshot = config.snapshot
    columns = [snapshot.columns, *(own.columns for own in snapshot.own_sources.values())]
    if snapshot.classes is not None or any(one is not None and one.label for one in columns):
        return []
    try:
        found = teacher_names(config)
    except ModelError as error:
        return [f"labels.teacher.model: {error}"]
    if found is None or not found.generic:
        return []
    return [
        f"snapshot.classes: no column of labels is named, and the teacher {config.labels.teacher.model} has only "
        f"generic names for its {len(found.names):,} classes: list their names, in the order of its outputs"
    ]


def numbers(names: TeacherNames) -> tuple[str, ...]:
    """Return the numbers of a teacher's outputs as names."""
    return tuple(str(number) for number in range(len(names.names)))


def describe_classes(config: Campaign) -> str:
    """Return the classes and their origin as a phrase; empty for a task without them."""
    return f"; classes {_origin(config)}" if get_task(config.task).answers.reads_labels() else ""


def _origin(config: Campaign) -> str:
    teacher, given = config.labels.teacher, config.snapshot.classes
    if given is not None:
        return f"{_listed(given)} (snapshot.classes)"
    if is_factory(teacher.model):
        return f"those of the teacher {teacher.model}"
    found = teacher_names(config)
    if found is None:
        return "as the labels name them"
    if found.generic:
        return f"{len(found.names):,} outputs of the teacher, which has no names for them: as the labels number them"
    return f"{_listed(found.names)} (the teacher's)"


def _listed(names: tuple[str, ...], most: int = 5) -> str:
    return f"{len(names):,}: {', '.join(names[:most])}{', …' if len(names) > most else ''}"
