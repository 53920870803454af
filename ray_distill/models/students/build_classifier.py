"""Make a student: from a config, a teacher's layers, a checkpoint or a function."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.errors import ConfigError, ModelError
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
from ray_distill.models.io.load import as_config, class_names, read_classifier, read_config, read_processor
from ray_distill.models.students.build_lm import build_language_student
from ray_distill.models.students.layer_copy import changed_config, copy_layers, depth_of, evenly_spaced, fresh, shorter
from ray_distill.models.text.processors import ImageProcessor, resized
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.inputs.modality import Processor


def build_student(
    config: StudentModel,
    *,
    task: str,
    classes: tuple[str, ...],
    teacher: TeacherConfig,
    seed: int,
    vocabulary: int | None = None,
) -> Model:
    """Make a student with ``classes`` as its outputs; float32, on the CPU, in eval mode.

    The outputs are in the order of ``classes``.

    The same arguments give the same weights. A student from the teacher's config or layers gets the teacher's
    processor too. A language model has no classes: its outputs are the teacher's ``vocabulary``, which is found
    where it is not given, and whatever its weights come from, it reads the teacher's tokens.

    Raises:
        ConfigError: overrides the config does not have, more layers than there are, a function with other classes.
        ModelError: the teacher or checkpoint cannot be loaded, or the student does not run.
        StorageError: the file system refused.
    """
    get_task(task)
    if get_task(task).answers.per_token:
        return build_language_student(config, task=task, teacher=teacher, seed=seed, vocabulary=vocabulary)
    if config.embeddings != "new":
        raise ConfigError(f"student.model.embeddings: {config.embeddings} is for language models; the task is {task}")
    if config.lora is not None:
        raise ConfigError(f"student.model.lora is for language models; the task is {task}")
    if config.source == "module":
        return _from_module(config, task, classes, seed)
    if config.source == "checkpoint":
        own = as_config(config)
        if is_factory(own.model):
            raise ConfigError(f"student.model.model {own.model} is a function: set from: module")
        with open_checkpoint(own.model) as folder:
            return _from_checkpoint(own, task, classes, seed, folder)
    if is_factory(teacher.model):
        raise ConfigError(
            f"the teacher {teacher.model} is a function, so there is no config or layers to start a "
            "student from: set student.model.from to checkpoint or module"
        )
    own = teacher.model_copy(update={"max_length": config.max_length or teacher.max_length})
    with open_checkpoint(teacher.model, weights=config.source == "teacher_layers") as folder:
        if config.source == "teacher_layers":
            return _from_layers(config, own, task, classes, seed, folder)
        return _from_config(config, own, task, classes, seed, folder)


def _from_config(
    config: StudentModel, teacher: TeacherConfig, task: str, classes: tuple[str, ...], seed: int, folder: Path
) -> Model:
    teacher_config = read_config(folder, teacher)
    student_config = changed_config(teacher_config, config.overrides, classes)
    processor = _fit_processor(read_processor(folder, student_config, teacher, task=task), config.overrides)
    module = fresh(student_config, teacher, task, seed)
    describe = {"source": "config", "overrides": dict(config.overrides), "teacher": teacher.model}
    return _finish(module, processor, classes, task, teacher.model, describe)


def _from_layers(
    config: StudentModel, teacher: TeacherConfig, task: str, classes: tuple[str, ...], seed: int, folder: Path
) -> Model:
    if config.overrides:
        raise ConfigError("student.model.overrides go with from: config; copied layers keep the teacher's config")
    check_files(folder, teacher.model)
    check_revision(checkpoint_digest(folder), teacher.revision, teacher.model)
    teacher_config = read_config(folder, teacher)
    depth = depth_of(teacher_config, teacher.model)
    assert config.keep is not None
    kept = evenly_spaced(config.keep, depth)
    student_config = changed_config(teacher_config, shorter(teacher_config, kept), classes)
    processor = read_processor(folder, student_config, teacher, task=task)
    student = fresh(student_config, teacher, task, seed)
    same = set(class_names(teacher_config)) == set(classes)
    source = _with_classes(folder, teacher, task, class_names(teacher_config) if same else classes, seed)
    if same:
        reorder_classes(source, class_names(teacher_config), classes, teacher.model)
    copy_layers(source, student, kept, depth)
    copied = {str(index): layer for index, layer in enumerate(kept)}
    describe = {"source": "teacher_layers", "teacher": teacher.model, "copied_layers": copied, "teacher_layers": depth}
    return _finish(student, processor, classes, task, teacher.model, describe)


def _from_checkpoint(own: TeacherConfig, task: str, classes: tuple[str, ...], seed: int, folder: Path) -> Model:
    if read_metadata(folder).get("factory"):
        raise ConfigError(f"{own.model} was saved from a function: set student.model.from to module with that function")
    check_files(folder, own.model)
    found = read_config(folder, own)
    processor = read_processor(folder, found, own, task=task)
    same = set(class_names(found)) == set(classes)
    module = _with_classes(folder, own, task, class_names(found) if same else classes, seed)
    if same:
        reorder_classes(module, class_names(found), classes, own.model)
    describe = {"source": "checkpoint", "checkpoint": checkpoint_digest(folder), "head": "kept" if same else "new"}
    return _finish(module, processor, classes, task, own.model, describe)


def _from_module(config: StudentModel, task: str, classes: tuple[str, ...], seed: int) -> Model:
    assert config.model is not None
    if not is_factory(config.model):
        raise ConfigError(
            f"student.model.model {config.model!r} is not module:function: for a folder use from: checkpoint"
        )
    check_annotated(config.model)
    arguments = dict(config.arguments)
    if takes(config.model, "classes"):
        arguments.setdefault("classes", list(classes))
    parts = call_factory(config.model, arguments, task=task, seed=seed)
    if parts.classes != classes:
        raise ConfigError(
            f"{config.model} has the classes {list(parts.classes)}, the snapshot {list(classes)}: give "
            "the function a parameter `classes`, which is then filled in"
        )
    return _finish(
        parts.module.float(),
        parts.processor,
        classes,
        task,
        config.model,
        {"source": "module"},
        factory=Factory(name=config.model, arguments=arguments),
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


def _with_classes(folder: Path, own: TeacherConfig, task: str, classes: Sequence[str], seed: int) -> nn.Module:
    """Read a checkpoint as a classifier of these classes.

    A head that is missing or of another size is newly initialised.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return read_classifier(
            folder,
            own,
            task=task,
            complete=False,
            ignore_mismatched_sizes=True,
            id2label=dict(enumerate(classes)),
            label2id={name: index for index, name in enumerate(classes)},
        )


def _fit_processor(processor: Processor, overrides: Mapping[str, Any]) -> Processor:
    """Return the teacher's processor, at the student's image size where that was changed."""
    size = overrides.get("image_size")
    if isinstance(processor, ImageProcessor) and isinstance(size, int):
        return resized(processor, size)
    return processor


def _finish(
    module: nn.Module,
    processor: Processor,
    classes: tuple[str, ...],
    task: str,
    url: str,
    describe: Mapping[str, Any],
    factory: Factory | None = None,
) -> Model:
    identity = {"weights": state_digest(module), "dtype": "float32"}
    return tried(
        finish(module, processor, classes, task=task, url=url, identity=identity, factory=factory, describe=describe)
    )
