"""The part of building a student that its family of answers decides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from ray_distill.config import TeacherConfig
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.models.core.model import ModelParts
from ray_distill.tasks.inputs.modality import Processor


class StudentKind(Protocol):
    """How students of a family agree with their teacher; made by `ModelFacet.student`."""

    @property
    def config_fields(self) -> Mapping[str, Any]:
        """Fields of the student's transformers config that the family decides, such as ``id2label``."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Arguments that a ``module:function`` is given where it has such parameters."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts for the model card of a student from the teacher's config."""

    @property
    def reads_teacher(self) -> bool:
        """Whether a student from the teacher's config reads weights of the teacher too."""

    def space(self, model_config: Any) -> AnswerSpace:
        """Return the classes of a student with this transformers config."""

    def check_config(self, model_config: Any, url: str) -> None:
        """Refuse a student whose config does not suit the teacher; ``url`` names it in the message."""

    def teacher_processor(self, folder: Path, model_config: Any, own: TeacherConfig) -> Processor:
        """Return the processor of a student that is made of the teacher in ``folder``."""

    def checkpoint_processor(self, folder: Path, model_config: Any, own: TeacherConfig) -> Processor:
        """Return the processor of a student from the checkpoint in ``folder``.

        Raises:
            ConfigError: it reads inputs in another way than the teacher, and the family requires the same.
        """

    def accept(self, parts: ModelParts, url: str) -> tuple[AnswerSpace, Processor]:
        """Return classes and processor of a student that the function ``url`` returned.

        Raises:
            ConfigError: its classes or inputs do not suit the teacher.
        """

    def read(self, folder: Path, own: TeacherConfig, model_config: Any) -> tuple[nn.Module, Mapping[str, Any]]:
        """Read a checkpoint with a head over the student's classes, and facts for the model card."""

    def start(self, module: nn.Module, folder: Path, own: TeacherConfig) -> None:
        """Change a new module where the teacher in ``folder`` decides more than its config."""
