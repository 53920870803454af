"""Make a language model student: from a config, teacher layers, a checkpoint or a function."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.errors import ConfigError
from ray_distill.models.core.checkpoint_files import (
    GENERATION_FILE,
    check_files,
    check_revision,
    checkpoint_digest,
    open_checkpoint,
    quiet,
    read_metadata,
)
from ray_distill.models.core.fingerprint import finish, state_digest, tried
from ray_distill.models.core.model import Factory, Model
from ray_distill.models.core.module_function import call_factory, check_annotated, is_factory, named, takes
from ray_distill.models.io.load import (
    as_config,
    load_processor,
    read_classifier,
    read_config,
    read_processor,
    vocabulary_of,
)
from ray_distill.models.io.lora import add_lora
from ray_distill.models.students.embeddings import start_embeddings
from ray_distill.models.students.layer_copy import changed_config, fresh
from ray_distill.models.students.layer_selection import take_layers
from ray_distill.models.text.tokenizer_match import require_length, require_same_tokens, speaking
from ray_distill.tasks.inputs.modality import Processor


@dataclass(frozen=True, kw_only=True)
class _Teacher:
    """The teacher that a student must agree with, and where its weights may come from."""

    config: TeacherConfig
    processor: Processor
    vocabulary: int | None
    """None where only the weights of a function could show it."""


def build_language_student(
    config: StudentModel, *, task: str, teacher: TeacherConfig, seed: int, vocabulary: int | None = None
) -> Model:
    """Make a student over the teacher's tokens; float32, on the CPU, in eval mode.

    It gets the teacher's processor.

    Args:
        config: where its weights come from.
        task: name of the task.
        teacher: whose labels it learns from.
        seed: of what is drawn: the same arguments give the same weights.
        vocabulary: width of the teacher's logits, if it is known; else it is read from the teacher's config. That of a
            teacher function is not compared then.

    Raises:
        ConfigError: another tokenizer or vocabulary than the teacher's, and as `build_student`.
        ModelError, StorageError: as `build_student`.
    """
    known = _Teacher(
        config=teacher, processor=load_processor(teacher, task=task), vocabulary=vocabulary or _width(teacher)
    )
    student = _from(config, known, task, seed)
    if config.lora is None:
        return student
    module = add_lora(student.module, config.lora, seed=seed)
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    describe = {**student.describe, "lora": {**config.lora.model_dump(mode="json"), "parameters": trained}}
    return _finish(module, known, student.vocabulary, task, student.url, describe, factory=student.factory)


def _from(config: StudentModel, known: _Teacher, task: str, seed: int) -> Model:
    if config.source == "module":
        return _from_module(config, known, task, seed)
    if config.source == "checkpoint":
        return _from_checkpoint(config, known, task)
    teacher = known.config
    if is_factory(teacher.model):
        raise ConfigError(
            f"the teacher {teacher.model} is a function, so there is no config or layers to start a "
            "student from: set student.model.from to checkpoint or module"
        )
    return (_from_layers if config.source == "teacher_layers" else _from_config)(config, known, task, seed)


def _from_config(config: StudentModel, teacher: _Teacher, task: str, seed: int) -> Model:
    own, started = teacher.config, config.embeddings != "new"
    with _opened(own, weights=started) as folder:
        student_config = changed_config(read_config(folder, own), config.overrides, ())
        _check(teacher, student_config, config, f"(student.model.overrides of {own.model})")
        module = fresh(student_config, own, task, seed)
        if started:
            start_embeddings(module, read_classifier(folder, own, task=task), config.embeddings)
        _inherit_generation(module, folder)
    describe = {
        "source": "config",
        "overrides": dict(config.overrides),
        "embeddings": config.embeddings,
        "teacher": own.model,
    }
    return _finish(module, teacher, vocabulary_of(student_config), task, own.model, describe)


def _from_layers(config: StudentModel, teacher: _Teacher, task: str, seed: int) -> Model:
    own = teacher.config
    if config.overrides:
        raise ConfigError("student.model.overrides go with from: config; copied layers keep the teacher's config")
    with _opened(own, weights=True) as folder:
        teacher_config = read_config(folder, own)
        taken = take_layers(teacher_config, config, own.model)
        student_config = changed_config(teacher_config, taken.overrides, ())
        _check(teacher, student_config, config, own.model)
        module = fresh(student_config, own, task, seed)
        taken.copy(read_classifier(folder, own, task=task), module)
        _inherit_generation(module, folder)
    describe = {"source": "teacher_layers", "teacher": own.model, **taken.describe}
    return _finish(module, teacher, vocabulary_of(student_config), task, own.model, describe)


def _from_checkpoint(config: StudentModel, teacher: _Teacher, task: str) -> Model:
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
        plain = read_processor(folder, found, own.model_copy(update={"max_length": None}), task=task)
        _check_tokens(plain, own.model, teacher, task)
        _check(teacher, found, config, own.model)
        module = read_classifier(folder, own, task=task)
    describe = {"source": "checkpoint", "checkpoint": digest}
    return _finish(module, teacher, vocabulary_of(found), task, own.model, describe)


def _from_module(config: StudentModel, teacher: _Teacher, task: str, seed: int) -> Model:
    assert config.model is not None
    if not is_factory(config.model):
        raise ConfigError(
            f"student.model.model {config.model!r} is not module:function: for a folder use from: checkpoint"
        )
    check_annotated(config.model)
    arguments = dict(config.arguments)
    if takes(config.model, "vocabulary") and teacher.vocabulary:
        arguments.setdefault("vocabulary", teacher.vocabulary)
    parts = call_factory(config.model, arguments, task=task, seed=seed)
    _, width = named(parts, task, config.model)
    _check_width(teacher, width, config.model)
    _check_tokens(parts.processor, config.model, teacher, task)
    require_length(teacher.processor, getattr(parts.module, "config", None), config.max_length, config.model)
    return _finish(
        parts.module.float(),
        teacher,
        width,
        task,
        config.model,
        {"source": "module"},
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


def _width(teacher: TeacherConfig) -> int | None:
    """Return the width of the teacher's logits, without weights; None if a function makes it."""
    if is_factory(teacher.model):
        return None
    with open_checkpoint(teacher.model, weights=False) as folder:
        return None if read_metadata(folder).get("factory") else vocabulary_of(read_config(folder, teacher))


def _check(teacher: _Teacher, student_config: Any, config: StudentModel, url: str) -> None:
    _check_width(teacher, vocabulary_of(student_config), url)
    require_length(teacher.processor, student_config, config.max_length, url)


def _check_tokens(processor: Processor, url: str, teacher: _Teacher, task: str) -> None:
    """Compare tokens with the teacher's settings.

    A student may lack the template that those of a chat need.
    """
    settings = teacher.config.language
    if settings.format == "text" or getattr(getattr(processor, "tokenizer", None), "chat_template", None):
        processor = speaking(processor, settings, task=task)
    require_same_tokens(processor, url, teacher.processor, teacher.config.model)


def _check_width(teacher: _Teacher, width: int, url: str) -> None:
    """Refuse a student whose logits are not as wide as its teacher's."""
    if teacher.vocabulary not in (None, width):
        raise ConfigError(
            f"the student {url} has a vocabulary of {width}, the teacher {teacher.config.model} one of "
            f"{teacher.vocabulary}: labels are distributions over the teacher's; give the student the same vocab_size "
            "(a vocabulary larger than the tokenizer's is fine), or start it from the teacher's config or layers"
        )


def _inherit_generation(student: nn.Module, folder: Path) -> None:
    """Copy the teacher's generation config, so that a student stops and writes as it does.

    Some teachers define only there which tokens end a message.
    """
    if (folder / GENERATION_FILE).is_file() and isinstance(student, transformers.GenerationMixin):
        with quiet():
            student.generation_config = transformers.GenerationConfig.from_pretrained(folder)


def _finish(
    module: nn.Module,
    teacher: _Teacher,
    vocabulary: int,
    task: str,
    url: str,
    describe: Mapping[str, Any],
    factory: Factory | None = None,
) -> Model:
    identity = {"weights": state_digest(module), "dtype": "float32"}
    return tried(
        finish(
            module,
            teacher.processor,
            (),
            task=task,
            url=url,
            vocabulary=vocabulary,
            identity=identity,
            factory=factory,
            describe=describe,
        )
    )
