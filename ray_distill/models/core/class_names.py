"""Named classes of models: read from a config or a function, and compared with a snapshot's."""

from collections.abc import Sequence
from typing import Any

from ray_distill.errors import ModelError, TeacherRefused
from ray_distill.labels.model.part_specs import AnswerSpace

#: Value of ``problem_type`` in a transformers config whose logits are one sigmoid a class.
MULTI_LABEL = "multi_label_classification"


def class_names(model_config: Any) -> tuple[str, ...]:
    """Return the class names of a transformers config, in the order of the logits."""
    names = {int(index): str(name) for index, name in model_config.id2label.items()}
    return tuple(names[index] for index in sorted(names))


def named(names: tuple[str, ...]) -> AnswerSpace:
    """Return the classes that have these names."""
    return AnswerSpace(names=names, size=len(names))


def named_space(names: tuple[str, ...], url: str) -> AnswerSpace:
    """Return the classes that the function ``url`` returned.

    Raises:
        ModelError: there are none.
    """
    if not names:
        raise ModelError(f"{url} returned the classes (): expected distinct names")
    return named(names)


def require_same_names(teacher: Sequence[str], snapshot: Sequence[str], url: str) -> None:
    """Refuse a teacher whose class names are not those of the snapshot, in whatever order.

    Raises:
        TeacherRefused: names the classes that only one side has.
    """
    only_snapshot, only_teacher = sorted(set(snapshot) - set(teacher)), sorted(set(teacher) - set(snapshot))
    if only_snapshot or only_teacher:
        raise TeacherRefused(
            f"the teacher {url} and the snapshot have different classes: only the teacher has {only_teacher[:5]}, "
            f"only the snapshot has {only_snapshot[:5]}; use the same names in snapshot.classes and in the teacher's "
            "id2label"
        )
