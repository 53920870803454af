"""Students over their teacher's tokens.

The processor is the teacher's, and the vocabularies are equal.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.errors import ConfigError
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.models.core.checkpoint_files import GENERATION_FILE, open_checkpoint, quiet, read_metadata
from ray_distill.models.core.model import ModelParts
from ray_distill.models.core.module_function import is_factory
from ray_distill.models.core.vocabulary import vocabulary_of, vocabulary_space
from ray_distill.models.io.load import load_processor, read_config, read_module, read_processor
from ray_distill.models.students.embeddings import start_embeddings
from ray_distill.models.text.chat import is_chat
from ray_distill.models.text.tokenizer_match import require_length, require_same_tokens, speaking, token_count
from ray_distill.tasks.inputs.modality import Processor


@dataclass(frozen=True, kw_only=True)
class TeacherTokens:
    """See `StudentKind`."""

    config: StudentModel
    task: str
    teacher: TeacherConfig
    processor: Processor
    """The teacher's."""
    width: int | None
    """Number of tokens that the teacher answers over; None where only the weights of a function would show it."""

    @property
    def config_fields(self) -> Mapping[str, Any]:
        """Return no fields: tokens have no names in a config."""
        return {}

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Return the teacher's vocabulary, where it is known."""
        return {} if self.width is None else {"vocabulary": self.width}

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return where the token embeddings come from."""
        return {"embeddings": self.config.embeddings}

    @property
    def reads_teacher(self) -> bool:
        """Return whether the token embeddings come from the teacher."""
        return self.config.embeddings != "new"

    def space(self, model_config: Any) -> AnswerSpace:
        """Return the vocabulary of a config."""
        return AnswerSpace(size=vocabulary_of(model_config))

    def check_config(self, model_config: Any, url: str) -> None:
        """Refuse another vocabulary than the teacher's, and fewer positions than its texts need.

        Raises:
            ConfigError: names both sides.
        """
        self._check_width(vocabulary_of(model_config), url)
        require_length(self.processor, model_config, self.config.max_length, url)

    def teacher_processor(self, folder: Path, model_config: Any, own: TeacherConfig) -> Processor:
        """Return the teacher's processor."""
        return self.processor

    def checkpoint_processor(self, folder: Path, model_config: Any, own: TeacherConfig) -> Processor:
        """Return the teacher's processor, after comparing the tokens of both."""
        plain = read_processor(folder, model_config, own.model_copy(update={"max_length": None}), task=self.task)
        self._check_tokens(plain, own.model)
        return self.processor

    def accept(self, parts: ModelParts, url: str) -> tuple[AnswerSpace, Processor]:
        """Return a function's vocabulary, and the teacher's processor; see `StudentKind`."""
        space = vocabulary_space(parts.module, parts.classes, url)
        self._check_width(space.size, url)
        self._check_tokens(parts.processor, url)
        require_length(self.processor, getattr(parts.module, "config", None), self.config.max_length, url)
        return space, self.processor

    def read(self, folder: Path, own: TeacherConfig, model_config: Any) -> tuple[nn.Module, Mapping[str, Any]]:
        """Read a checkpoint whole."""
        return read_module(folder, own, task=self.task), {}

    def start(self, module: nn.Module, folder: Path, own: TeacherConfig) -> None:
        """Copy the teacher's generation config and, where configured, its token embeddings.

        A student then stops and writes as its teacher does. Some teachers define only there which tokens end a
        message.
        """
        if self.reads_teacher:
            start_embeddings(module, read_module(folder, own, task=self.task), self.config.embeddings)
        if (folder / GENERATION_FILE).is_file() and isinstance(module, transformers.GenerationMixin):
            with quiet():
                module.generation_config = transformers.GenerationConfig.from_pretrained(folder)

    def _check_tokens(self, processor: Processor, url: str) -> None:
        """Compare tokens with the teacher's settings.

        A student may lack the template that those of a chat need.
        """
        settings = self.teacher.language
        if not is_chat(settings) or getattr(getattr(processor, "tokenizer", None), "chat_template", None):
            processor = speaking(processor, settings, task=self.task)
        require_same_tokens(processor, url, self.processor, self.teacher.model)

    def _check_width(self, width: int, url: str) -> None:
        """Refuse logits that do not cover the tokenizer, or copied embeddings of another size.

        Vocabularies may be padded differently: classes beyond the tokenizer have no token (`shared_classes`).
        """
        known = self.width or width
        # Some tokenizers have more tokens than their own model: the teacher never reads those.
        least = min(token_count(self.processor) or known, known)
        if width < least:
            raise ConfigError(
                f"the student {url} has a vocabulary of {width}, fewer than the {least} tokens that the teacher "
                f"{self.teacher.model} reads, whose own is {known}: set its vocab_size to {known}, save it after "
                f"resize_token_embeddings({known}), or start it from the teacher's config or layers"
            )
        if width != known and self.reads_teacher:
            raise ConfigError(
                f"student.model.embeddings is {self.config.embeddings}, but the student {url} has a vocabulary of "
                f"{width}, the teacher {self.teacher.model} one of {known}: leave vocab_size out of "
                "student.model.overrides, or set embeddings to new"
            )


def token_student(
    config: StudentModel, *, task: str, teacher: TeacherConfig, width: int | None = None
) -> TeacherTokens:
    """Return the rules for a student over the teacher's tokens.

    Args:
        config: source of the student's weights.
        task: name of the task.
        teacher: the model whose labels it learns from.
        width: number of tokens that the teacher answers over, if it is known; else its config is read. That of a
            teacher function is not compared then.

    Raises:
        ModelError, ConfigError, StorageError: the teacher's processor or config cannot be read.
    """
    if config.kept_tokens is not None:
        raise ConfigError(
            f"student.model.vocabulary is for classifiers of texts, and the labels of {task} are distributions over "
            "all tokens of the teacher: set it to null"
        )
    known = _width(teacher) if width is None else width
    return TeacherTokens(
        config=config, task=task, teacher=teacher, processor=load_processor(teacher, task=task), width=known
    )


def _width(teacher: TeacherConfig) -> int | None:
    """Return the width of the teacher's logits, without weights; None if a function makes it."""
    if is_factory(teacher.model):
        return None
    with open_checkpoint(teacher.model, weights=False) as folder:
        return None if read_metadata(folder).get("factory") else vocabulary_of(read_config(folder, teacher))
