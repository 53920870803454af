"""Derive config and processor of a student that is made of its teacher, without weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.models.heads.pooled import POOLING
from ray_distill.models.io.load import read_config
from ray_distill.models.students.kind import StudentKind
from ray_distill.models.students.layer_copy import changed_config
from ray_distill.models.students.layer_selection import Taken, take_layers
from ray_distill.models.students.measured import Measured
from ray_distill.models.students.vocabulary import KeptTokens, keep_tokens
from ray_distill.models.students.width import KeptWidth, keep_width
from ray_distill.tasks.inputs.modality import Processor


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A student before it has weights."""

    teacher: Any
    """The teacher's transformers config."""
    config: Any
    """The student's."""
    processor: Processor
    taken: Taken | None
    """The layers that are copied."""
    kept: KeptTokens | None
    """The tokens that are kept; None keeps all."""

    width: KeptWidth | None
    """The channels, heads and neurons that are kept; None keeps all."""

    @property
    def describe(self) -> dict[str, Any]:
        """Return the facts about what is kept, for the model card."""
        return {
            **({} if self.taken is None else self.taken.describe),
            **({} if self.width is None else {"width": dict(self.width.describe)}),
            **({} if self.kept is None else {"vocabulary": dict(self.kept.describe)}),
        }


def shape_student(
    config: StudentModel, kind: StudentKind, folder: Path, *, own: TeacherConfig, measured: Measured
) -> Shape:
    """Return the shape of a student that is made of the teacher in ``folder``.

    Args:
        config: source of the student's weights.
        kind: the family's rules.
        folder: the teacher's checkpoint.
        own: the teacher's settings, with the student's ``max_length``.
        measured: what was measured on the snapshot.

    Raises:
        ConfigError, ModelError: as `build_student`.
    """
    teacher = read_config(folder, own)
    copied, cut = config.source != "config", config.source == "teacher_width"
    width = keep_width(config, teacher, scores=measured.width, url=own.model) if cut else None
    taken = (
        take_layers(teacher, config, own.model, measured.layers, pooling=kind.config_fields.get(POOLING))
        if copied
        else None
    )
    overrides = config.overrides if taken is None else taken.overrides
    overrides = {**overrides, **(width.overrides if width is not None else {})}
    found = changed_config(teacher, overrides, kind.config_fields)
    kind.check_config(found, f"(student.model.overrides of {own.model})" if taken is None else own.model)
    processor, kept = kind.teacher_processor(folder, found, own), None
    if config.kept_tokens is not None:
        kept = keep_tokens(config.kept_tokens, processor, found, counts=measured.counts, url=own.model)
        found, processor = changed_config(found, kept.overrides, kind.config_fields), kept.processor
    return Shape(teacher=teacher, config=found, processor=processor, taken=taken, kept=kept, width=width)
