"""Models that answer once a row over named classes, whatever each answer means.

`space` to `limit_entries` are what `ModelFacet` requires; families of such models import them.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import nn

from ray_distill.config import SignalConfig, TeacherConfig
from ray_distill.errors import ModelError, TeacherRefused
from ray_distill.labels.model.part_specs import AnswerSpace

#: Value of ``problem_type`` in a transformers config whose logits are one sigmoid a class.
MULTI_LABEL: Final = "multi_label_classification"
#: The value of one whose logits are numbers.
REGRESSION: Final = "regression"
_GENERIC: Final = re.compile(r"LABEL_\d+")
HEADLESS: Final = "; for an encoder without a classification head set `head` in the teacher's config"


def space(model_config: Any) -> AnswerSpace:
    """Return the class names of a transformers config."""
    return named(class_names(model_config))


def space_of(module: nn.Module, names: tuple[str, ...], url: str) -> AnswerSpace:
    """Return the class names that the function ``url`` returned.

    Raises:
        ModelError: there are none.
    """
    if not names:
        raise ModelError(f"{url} returned the classes (): expected distinct names")
    return named(names)


def describe(space: AnswerSpace) -> str:
    """Return the number of classes as a phrase."""
    return f"with {space.size} classes"


def check_classes(space: AnswerSpace, snapshot: Sequence[str], url: str) -> None:
    """Refuse a teacher whose class names are not those of the snapshot, in whatever order.

    Raises:
        TeacherRefused: names the classes that only one side has.
    """
    teacher = set(space.names)
    only_snapshot, only_teacher = sorted(set(snapshot) - teacher), sorted(teacher - set(snapshot))
    if not only_snapshot and not only_teacher:
        return
    if are_generic(space.names) or space.names == tuple(map(str, range(space.size))):
        raise TeacherRefused(
            f"the teacher {url} has only generic names for its {space.size:,} classes ({listed(space.names)}), and the "
            f"snapshot has {len(snapshot):,} classes ({listed(snapshot)}): list {space.size:,} names, in the order of "
            "the teacher's outputs, in snapshot.classes"
        )
    raise TeacherRefused(
        f"the teacher {url} and the snapshot have different classes: only the teacher has {listed(only_teacher)}, "
        f"only the snapshot has {listed(only_snapshot)}; use the same names in snapshot.classes and in the teacher's "
        "id2label"
    )


def check_id2label(model: TeacherConfig, model_config: Any) -> None:
    """Refuse an id2label that does not give each output one name of its own.

    A config is right where the campaign names the classes itself.

    Raises:
        ModelError: names the outputs, and how to go on.
    """
    if model_config is None or model.classes is not None:
        return
    names = {int(index): str(name) for index, name in model_config.id2label.items()}
    fault = _fault_of(names, getattr(model_config, "label2id", None) or {})
    if fault:
        raise ModelError(
            f"{model.model}: id2label in its config.json {fault}; correct it, or list one name an output, in their "
            "order, in labels.teacher.classes"
        )


def _fault_of(names: Mapping[int, str], indices: Mapping[str, int]) -> str:
    """Return a phrase for the first fault, or an empty text.

    Args:
        names: id2label.
        indices: label2id; names that id2label lacks are left out.
    """
    if sorted(names) != list(range(len(names))):
        return f"numbers {len(names):,} outputs {listed([str(index) for index in sorted(names)])}, expected 0, 1, 2…"
    first: dict[str, int] = {}
    for index, name in sorted(names.items()):
        if not name.strip():
            return f"has no name for output {index}"
        if first.setdefault(name, index) != index:
            return f"gives the outputs {first[name]} and {index} one name, {name!r}"
    for name, index in first.items():
        if int(indices.get(name, index)) != index:
            return f"names output {index} {name!r}, and label2id gives that name to output {indices[name]}"
    return ""


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the names as a list; of many their number, and the first ones."""
    return str(list(names)) if len(names) <= most else f"{len(names):,} classes such as {list(names[:most])}"


def are_generic(names: Sequence[str]) -> bool:
    """Return whether names are those that transformers gives where nobody gave any."""
    return bool(names) and all(_GENERIC.fullmatch(name) for name in names)


def logits_shape(width: int) -> tuple[int | None, ...]:
    """Return ``[1, V]``."""
    return (1, width)


def separate(module: nn.Module) -> None:
    """Return None: there is one answer a row, and no position to choose."""


def stored_form(signal: SignalConfig, given: Sequence[str]) -> SignalConfig:
    """Return the settings as they are: every class is stored."""
    return signal


def limit_entries(k: int, space: AnswerSpace, url: str) -> int:
    """Return ``k``, or all classes where there are fewer."""
    return min(k, space.size)


def named(names: tuple[str, ...]) -> AnswerSpace:
    """Return the classes that have these names."""
    return AnswerSpace(names=names, size=len(names))


def class_names(model_config: Any) -> tuple[str, ...]:
    """Return the class names of a transformers config, in the order of the logits.

    Names that several outputs share get the output's number; `check_id2label` refuses them where they would be used.
    """
    names = {int(index): str(name) for index, name in model_config.id2label.items()}
    times = Counter(names.values())
    return tuple(f"{name} ({index})" if times[name] > 1 else name for index, name in sorted(names.items()))
