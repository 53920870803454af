"""Decide how a language model tokenizes, and compare the tokens of two models."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ray_distill.config import TeacherConfig
from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.models.text.lm_processor import LanguageProcessor, language_processor
from ray_distill.models.text.processors import TextProcessor
from ray_distill.models.text.seq2seq_processor import PairProcessor, pair_processor
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.inputs.modality import Processor


def language_of(spec: Any, saved: Mapping[str, Any], url: str) -> LanguageConfig | None:
    """Return the language settings that a model is loaded with; None where there are none.

    A teacher's config has them; for a folder or a student those that were saved with the model count.

    Args:
        spec: what `load_model` was given.
        saved: what `save_model` wrote beside the model.
        url: of the model, for messages.

    Raises:
        ModelError: what was saved is damaged.
    """
    if isinstance(spec, TeacherConfig):
        return spec.language
    if "language" not in saved:
        return None
    try:
        return LanguageConfig.model_validate(saved["language"])
    except ValidationError as error:
        raise ModelError(f"the language settings that {url} was saved with are damaged: {error}") from error


def speaking(
    processor: Processor, settings: LanguageConfig | None, *, task: str, max_length: int | None = None
) -> Processor:
    """Apply language settings to a function's processor, if the task's inputs have any.

    Raises:
        ModelError, ConfigError: as `language_processor`.
    """
    return get_task(task).inputs.adapt_processor(processor, settings, max_length)


def adapt_pairs(processor: Processor, settings: LanguageConfig | None, max_length: int | None) -> Processor:
    """Apply settings to a processor of sources and targets; another one is returned as it is."""
    if not isinstance(processor, PairProcessor):
        return processor
    settings = settings or processor.settings
    return pair_processor(processor.tokenizer, max_length or processor.max_length, settings, start=processor.start)


def adapt_language(processor: Processor, settings: LanguageConfig | None, max_length: int | None) -> Processor:
    """Return the language processor of one with a tokenizer; another is returned as it is."""
    if not isinstance(processor, TextProcessor | LanguageProcessor):
        return processor
    if settings is None:
        settings = processor.settings if isinstance(processor, LanguageProcessor) else LanguageConfig()
    return language_processor(processor.tokenizer, max_length or processor.max_length, settings)


def tokens_of(processor: Processor) -> str:
    """Return the fingerprint of the tokens alone, else of the whole processor."""
    return str(getattr(processor, "tokens_fingerprint", processor.fingerprint))


def token_count(processor: Processor) -> int:
    """Return one more than the largest token id; 0 for a processor without a tokenizer."""
    tokenizer = getattr(processor, "tokenizer", None)
    return 0 if tokenizer is None else max(tokenizer.get_vocab().values(), default=-1) + 1


def require_same_tokens(student: Processor, student_url: str, teacher: Processor, teacher_url: str) -> None:
    """Refuse a student whose tokens differ from its teacher's, and so from the stored labels.

    Raises:
        ConfigError: names both, what differs, and the ways out.
    """
    if tokens_of(student) == tokens_of(teacher):
        return
    raise ConfigError(
        f"the student {student_url} has another tokenizer than the teacher {teacher_url}: "
        f"{_difference(getattr(student, 'tokenizer', None), getattr(teacher, 'tokenizer', None))}. Labels are "
        "distributions over the teacher's tokens: take a checkpoint of the same family, start the student from the "
        "teacher's config or layers (student.model.from), or, if the ids mean the same in both, put the teacher's "
        "tokenizer files and chat template into a copy of the student's folder"
    )


def require_length(processor: Processor, model_config: Any, requested: int | None, url: str) -> None:
    """Refuse a student that cannot read, or would cut elsewhere, what its teacher read.

    Raises:
        ConfigError: it has fewer positions than the teacher's texts have tokens, or a ``max_length`` of its own.
    """
    length = getattr(processor, "max_length", None)
    longest = max((limit for limit in (length, getattr(processor, "target_length", None)) if limit), default=None)
    if requested is not None and requested != length:
        raise ConfigError(
            f"student.model.max_length is {requested}, but the teacher reads {length} tokens of a text, and "
            "labels belong to its tokens: leave it out, or set labels.teacher.max_length for both"
        )
    positions = getattr(model_config, "max_position_embeddings", None)
    if longest is not None and positions is not None and longest > positions:
        raise ConfigError(
            f"the student {url} has {positions} positions, but the teacher reads {longest} tokens of a "
            f"text: set labels.teacher.max_length to {positions} or less, or give the student more"
        )


def _difference(student: Any, teacher: Any) -> str:
    """Describe the differences of two tokenizers, the student's first."""
    if student is None or teacher is None:
        return "their processors differ"
    mine, its = student.get_vocab(), teacher.get_vocab()
    if mine != its:
        other = sum(its.get(token) != index for token, index in mine.items())
        return f"{len(mine)} tokens against {len(its)}, of which {other} are unknown to the teacher or have other ids"
    special = {
        name: (student.special_tokens_map.get(name), teacher.special_tokens_map.get(name))
        for name in sorted({*student.special_tokens_map, *teacher.special_tokens_map} - {"pad_token"})
    }
    apart = [f"{name} {mine} against {its}" for name, (mine, its) in special.items() if mine != its]
    if apart:
        return "; ".join(apart)
    if student.chat_template != teacher.chat_template:
        return "the same vocabulary, but another chat template"
    return "the same vocabulary, but other rules for cutting a text into tokens"
