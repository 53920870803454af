"""Students over named classes.

The head is matched by name, and the processor is the student's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.models.core.model import ModelParts
from ray_distill.models.core.row_classes import class_names, named
from ray_distill.models.heads.pooled import POOLED_TASKS, POOLING, around_encoder, is_pooled
from ray_distill.models.io.load import read_module, read_processor
from ray_distill.models.text.processors import ImageProcessor, resized
from ray_distill.tasks.inputs.modality import Processor
from ray_distill.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class NamedClasses:
    """See `StudentKind`."""

    config: StudentModel
    task: str
    classes: tuple[str, ...]
    """Names, in the order of the student's logits."""
    problem_type: str | None
    """Field of the student's transformers config; None leaves it unset."""
    seed: int
    facts: Mapping[str, Any]
    pooling: str | None = None
    """Pooling of the student's last states, which is its teacher's; None leaves it to the student's class."""
    reads_teacher: bool = False

    @property
    def config_fields(self) -> Mapping[str, Any]:
        """Return names of the classes both ways, the problem type, and the pooling."""
        pooled = {} if self.pooling is None else {POOLING: self.pooling}
        return {**_fields(self.classes, self.problem_type), **pooled}

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Return the names of the classes."""
        return {"classes": list(self.classes)}

    def space(self, model_config: Any) -> AnswerSpace:
        """Return the classes; every config is given them."""
        return named(self.classes)

    def check_config(self, model_config: Any, url: str) -> None:
        """Accept every config: a new head is drawn where it does not fit."""

    def teacher_processor(self, folder: Path, model_config: Any, own: TeacherConfig) -> Processor:
        """Return the teacher's processor, at the student's image size where that was changed."""
        processor = read_processor(folder, model_config, own, task=self.task)
        size = self.config.overrides.get("image_size")
        if isinstance(processor, ImageProcessor) and isinstance(size, int):
            return resized(processor, size)
        return processor

    def checkpoint_processor(self, folder: Path, model_config: Any, own: TeacherConfig) -> Processor:
        """Return the checkpoint's own processor."""
        return read_processor(folder, model_config, own, task=self.task)

    def accept(self, parts: ModelParts, url: str) -> tuple[AnswerSpace, Processor]:
        """Return classes and processor of a function's model; see `StudentKind`."""
        if parts.classes != self.classes:
            raise ConfigError(
                f"{url} has the classes {list(parts.classes)}, the snapshot {list(self.classes)}: give "
                "the function a parameter `classes`, which is then filled in"
            )
        return named(self.classes), parts.processor

    def read(self, folder: Path, own: TeacherConfig, model_config: Any) -> tuple[nn.Module, Mapping[str, Any]]:
        """Read a checkpoint; its head is kept and reordered where it has the same class names."""
        found = class_names(model_config)
        same = set(found) == set(self.classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self.pooling is not None and not is_pooled(model_config):
                return around_encoder(folder, own, dict(self.config_fields)), {"head": "new"}
            module = read_module(
                folder,
                own,
                task=self.task,
                complete=False,
                ignore_mismatched_sizes=True,
                **_fields(found if same else self.classes, self.problem_type),
            )
        if same:
            reorder_classes(module, found, self.classes, own.model)
        return module, {"head": "kept" if same else "new"}

    def start(self, module: nn.Module, folder: Path, own: TeacherConfig) -> None:
        """Leave a new module as it is."""


def named_student(
    config: StudentModel,
    *,
    task: Task,
    classes: tuple[str, ...],
    teacher: TeacherConfig,
    seed: int,
    problem_type: str | None = None,
) -> NamedClasses:
    """Return the rules for a student over named classes.

    A student that is made of a text encoder with a fitted head pools its states as that head does: the class that
    transformers has for the encoder would read the first token alone.

    Raises:
        ConfigError: settings that only language models have.
    """
    if config.embeddings != "new":
        raise ConfigError(
            f"student.model.embeddings: {config.embeddings} is for language models; the task is {task.name}"
        )
    if config.lora is not None:
        raise ConfigError(f"student.model.lora is for language models; the task is {task.name}")
    made = config.source in ("config", "teacher_layers", "teacher_width") and task.auto_class == POOLED_TASKS
    return NamedClasses(
        config=config,
        task=task.name,
        classes=classes,
        problem_type=problem_type,
        seed=seed,
        facts={},
        pooling=teacher.head.pool if made and teacher.head is not None else None,
    )


def reorder_classes(module: nn.Module, found: Sequence[str], expected: Sequence[str], url: str) -> None:
    """Permute a classification head in place, to another order of the same class names.

    Raises:
        ModelError: it is not clear which layer is the head.
    """
    if tuple(found) == tuple(expected):
        return
    heads = [
        part
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
        and part.out_features == len(found)
        and name.rpartition(".")[2] in ("classifier", "score", "out_proj", "head", "fc")
    ]
    if len(heads) != 1:
        raise ModelError(
            f"{url} has its classes in the order {list(found)}, expected {list(expected)}, and which "
            "layer to permute is not clear: give snapshot.classes in the checkpoint's order"
        )
    order = torch.tensor([list(found).index(name) for name in expected])
    with torch.no_grad():
        for values in (heads[0].weight, heads[0].bias):
            if values is not None:
                values.copy_(values[order])


def _fields(classes: Sequence[str], problem_type: str | None) -> dict[str, Any]:
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: index for index, name in enumerate(classes)}}
    return {**names, "problem_type": problem_type}
