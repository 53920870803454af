"""Make a student: from a config, a teacher's layers or width, a checkpoint or a function.

The part that the family of answers decides is a `StudentKind`, which the task's facet ``model`` makes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.errors import ConfigError
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.models.core.checkpoint_files import (
    check_files,
    check_revision,
    checkpoint_digest,
    open_checkpoint,
    read_metadata,
)
from ray_distill.models.core.fingerprint import finish, state_digest, tried
from ray_distill.models.core.model import Factory, Model
from ray_distill.models.core.module_function import call_factory, check_annotated, is_factory, takes
from ray_distill.models.io.load import as_config, read_config
from ray_distill.models.io.lora import add_lora
from ray_distill.models.students.kind import StudentKind
from ray_distill.models.students.layer_copy import fresh, whole
from ray_distill.models.students.measured import Measured, needs_measuring
from ray_distill.models.students.shape import shape_student
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.inputs.modality import Processor


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A student before it is fingerprinted and tried."""

    module: nn.Module
    processor: Processor
    space: AnswerSpace
    url: str
    describe: Mapping[str, Any]
    factory: Factory | None = None


def build_student(
    config: StudentModel,
    *,
    task: str,
    classes: tuple[str, ...],
    teacher: TeacherConfig,
    seed: int,
    vocabulary: int | None = None,
    measured: Measured | None = None,
) -> Model:
    """Make a student with ``classes`` as its outputs; float32, on the CPU, in eval mode.

    The outputs are in the order of ``classes``.

    The same arguments give the same weights. A student from the teacher's config or layers gets the teacher's
    processor too. A language model has no classes: its outputs are the teacher's ``vocabulary``, which is found
    where it is not given, and whatever its weights come from, it reads the teacher's tokens.

    Which tokens, layers and channels a student keeps follows from ``measured``, which must be given where
    `needs_measuring`.

    Raises:
        ConfigError: overrides the config does not have, more layers than there are, a function with other classes,
            another tokenizer or vocabulary than the teacher's.
        ModelError: the teacher or checkpoint cannot be loaded, or the student does not run.
        StorageError: the file system refused.
    """
    assert measured is not None or not needs_measuring(config), "these settings need measurements"
    measured, own = measured or Measured(), get_task(task)
    kind = own.answers.model.student(config, task=own, classes=classes, width=vocabulary, teacher=teacher, seed=seed)
    made = _make(config, kind, task, teacher=teacher, seed=seed, measured=measured)
    student = _finish(made, task)
    if config.lora is None:
        return student
    module = add_lora(made.module, config.lora, seed=seed)
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    adapters = {**config.lora.model_dump(mode="json"), "parameters": trained}
    adapted = _Made(
        module=module,
        processor=made.processor,
        space=made.space,
        url=made.url,
        describe={**student.describe, "lora": adapters},
        factory=made.factory,
    )
    return _finish(adapted, task)


def require_start(config: StudentModel, teacher: TeacherConfig) -> None:
    """Refuse a student that is made of its teacher, where this is a function.

    Raises:
        ConfigError: there is no config and there are no layers to start from.
    """
    if config.source not in ("module", "checkpoint") and is_factory(teacher.model):
        raise ConfigError(
            f"student.model.from is {config.source}, but the teacher {teacher.model} is a function, which has no "
            "config and no layers to start a student from: set it to checkpoint or module"
        )


def _make(
    config: StudentModel, kind: StudentKind, task: str, *, teacher: TeacherConfig, seed: int, measured: Measured
) -> _Made:
    if config.source == "module":
        return _from_module(config, kind, task, seed)
    if config.source == "checkpoint":
        return _from_checkpoint(config, kind)
    require_start(config, teacher)
    own = teacher.model_copy(update={"max_length": config.max_length or teacher.max_length})
    make = _from_config if config.source == "config" else _from_weights
    return make(config, kind, task, own=own, seed=seed, measured=measured)


def _from_config(
    config: StudentModel, kind: StudentKind, task: str, *, own: TeacherConfig, seed: int, measured: Measured
) -> _Made:
    with _opened(own, weights=kind.reads_teacher) as folder:
        shape = shape_student(config, kind, folder, own=own, measured=measured)
        module = fresh(shape.config, own, task, seed)
        kind.start(module, folder, own)
    facts = {"overrides": dict(config.overrides), **kind.facts, **shape.describe, **_chosen(config)}
    return _Made(
        module=module,
        processor=shape.processor,
        space=kind.space(shape.config),
        url=own.model,
        describe={"source": "config", **facts, "teacher": own.model},
    )


def _from_weights(
    config: StudentModel, kind: StudentKind, task: str, *, own: TeacherConfig, seed: int, measured: Measured
) -> _Made:
    if config.overrides and config.source == "teacher_layers":
        raise ConfigError("student.model.overrides go with from: config; copied layers keep the teacher's config")
    with _opened(own, weights=True) as folder:
        shape = shape_student(config, kind, folder, own=own, measured=measured)
        assert shape.taken is not None
        module = fresh(shape.config, own, task, seed)
        source, _ = kind.read(folder, own, shape.teacher)
        if shape.kept is not None:
            shape.kept.cut_embeddings(source)
        shape.taken.copy(source, module, cut=whole if shape.width is None else shape.width.cut)
        kind.start(module, folder, own)
    return _Made(
        module=module,
        processor=shape.processor,
        space=kind.space(shape.config),
        url=own.model,
        describe={"source": config.source, "teacher": own.model, **shape.describe, **_chosen(config)},
    )


def _chosen(config: StudentModel) -> dict[str, str]:
    """Return how the student was chosen, for the model card."""
    return {} if config.chosen_by is None else {"chosen_by": config.chosen_by}


def _from_checkpoint(config: StudentModel, kind: StudentKind) -> _Made:
    own = as_config(config)
    if is_factory(own.model):
        raise ConfigError(f"student.model.model {own.model} is a function: set from: module")
    with open_checkpoint(own.model) as folder:
        if read_metadata(folder).get("factory"):
            raise ConfigError(
                f"{own.model} was saved from a function: set student.model.from to module with that function"
            )
        check_files(folder, own.model)
        found, digest = read_config(folder, own), checkpoint_digest(folder)
        processor = kind.checkpoint_processor(folder, found, own)
        kind.check_config(found, own.model)
        module, facts = kind.read(folder, own, found)
    return _Made(
        module=module,
        processor=processor,
        space=kind.space(found),
        url=own.model,
        describe={"source": "checkpoint", "checkpoint": digest, **facts},
    )


def _from_module(config: StudentModel, kind: StudentKind, task: str, seed: int) -> _Made:
    assert config.model is not None
    if not is_factory(config.model):
        raise ConfigError(
            f"student.model.model {config.model!r} is not module:function: for a folder use from: checkpoint"
        )
    check_annotated(config.model)
    offered = {name: value for name, value in kind.arguments.items() if takes(config.model, name)}
    arguments = {**offered, **config.arguments}
    parts = call_factory(config.model, arguments, seed=seed)
    space, processor = kind.accept(parts, config.model)
    return _Made(
        module=parts.module.float(),
        processor=processor,
        space=space,
        url=config.model,
        describe={"source": "module"},
        factory=Factory(name=config.model, arguments=arguments),
    )


@contextmanager
def _opened(teacher: TeacherConfig, *, weights: bool) -> Iterator[Path]:
    """Open the teacher's folder; its revision is checked where its weights are read."""
    with open_checkpoint(teacher.model, weights=weights) as folder:
        if weights:
            check_files(folder, teacher.model)
            check_revision(checkpoint_digest(folder), teacher.revision, teacher.model)
        yield folder


def _finish(made: _Made, task: str) -> Model:
    return tried(
        finish(
            made.module,
            made.processor,
            made.space,
            task=task,
            url=made.url,
            identity={"weights": state_digest(made.module), "dtype": "float32"},
            factory=made.factory,
            describe=made.describe,
        )
    )
