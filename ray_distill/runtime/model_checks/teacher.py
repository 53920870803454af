"""Open a teacher's head: its classes or vocabulary, its processor and its hidden states."""

import inspect
import re
from dataclasses import dataclass, replace
from typing import Any

import torch

from ray_distill.config import Campaign, TeacherConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.models.core.checkpoint_files import check_files, open_checkpoint, read_metadata
from ray_distill.models.core.fingerprint import SPREAD
from ray_distill.models.core.model import Model
from ray_distill.models.core.module_function import import_factory, is_factory
from ray_distill.models.core.row_classes import named
from ray_distill.models.io.load import load_model, read_config, read_processor
from ray_distill.models.text.tokenizer_match import token_count
from ray_distill.runtime.model_checks.sizes import is_small
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.inputs.modality import Processor
from ray_distill.teachers.engines import refuse_classes
from ray_distill.teachers.layers import resolve_layers

_REVISION = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class TeacherHead:
    """Describe a teacher before it labels; None is what only loading it would show."""

    space: AnswerSpace | None = None
    tokens: str | None = None
    widths: tuple[int, ...] | None = None
    """Width of each hidden state, 0 = the embeddings."""
    spatial: bool = False
    """Whether its states are feature maps."""
    layers: tuple[int, ...] = ()
    """The configured hidden layers, counted from 0."""
    notes: tuple[str, ...] = ()
    """Notes for the plan."""


def open_teacher_head(config: Campaign, *, call: bool, load: bool = True) -> TeacherHead:
    """Open the head of the campaign's teacher, and compare it with the configuration.

    A small checkpoint is loaded and run on a made-up example, on the CPU. A function's arguments are compared with its
    signature; only a dry run calls it, because it may hang or end its process, against which tasks of labelling are
    protected. A function whose actors need GPUs is never called here.

    Args:
        config: the campaign.
        call: call a function, and run its model.
        load: load a small checkpoint; False opens config and processor alone.

    Raises:
        ModelError, ConfigError, StorageError: as `load_model`.
        TeacherRefused: its classes are not those of ``snapshot.classes``, or it lacks a layer.
    """
    teacher, own = config.labels.teacher, get_task(config.task)
    _check_settings(teacher)
    found = _head(config, call=call, load=load)
    if found.space is not None:
        if config.snapshot.classes:
            own.answers.model.check_classes(found.space, config.snapshot.classes, teacher.model)
        refuse_classes(config.labels, found.space.size)
    if found.widths is None or not config.labels.hidden.layers:
        return found
    return _with_layers(config, found)


def _check_settings(teacher: TeacherConfig) -> None:
    """Refuse a device and a revision that no machine has."""
    if teacher.device not in ("auto", SPREAD):
        try:
            torch.device(teacher.device)
        except RuntimeError as error:
            raise ConfigError(
                f"labels.teacher.device is {teacher.device!r}: expected auto, {SPREAD}, cpu, cuda or cuda:<number>"
            ) from error
    if teacher.revision is not None and not _REVISION.fullmatch(teacher.revision):
        raise ConfigError(
            f"labels.teacher.revision is {teacher.revision!r}: expected sha256: and 64 hexadecimal digits, the digest "
            "of the checkpoint's files that a store's manifest records"
        )


def _head(config: Campaign, *, call: bool, load: bool) -> TeacherHead:
    teacher = config.labels.teacher
    if is_factory(teacher.model):
        _check_arguments(teacher)
        return _of_model(_load(config)) if call and not config.labels.resources.gpus else TeacherHead()
    if load and teacher.head is None and teacher.engine == "transformers" and is_small(teacher.model):
        return _of_model(_load(config))
    return _of_config(config)


def _load(config: Campaign) -> Model:
    here = config.labels.teacher.model_copy(update={"device": "cpu", "dtype": "float32"})
    return load_model(here, task=config.task)


def _of_model(model: Model) -> TeacherHead:
    states = model.states
    return TeacherHead(
        space=model.space,
        tokens=getattr(model.processor, "tokens_fingerprint", None),
        widths=states.widths,
        spatial=states.spatial,
        notes=_notes(getattr(model.module, "config", None), model.processor, model.url),
    )


def _of_config(config: Campaign) -> TeacherHead:
    """Open config and processor of a checkpoint that is not loaded."""
    teacher, own = config.labels.teacher, get_task(config.task)
    with open_checkpoint(teacher.model, weights=False) as folder:
        if is_local_folder := str(folder) == teacher.model:
            check_files(folder, teacher.model)
        if read_metadata(folder).get("factory"):
            return _of_model(_load(config)) if is_local_folder else TeacherHead()
        model_config = read_config(folder, teacher)
        processor: Processor = read_processor(folder, model_config, teacher, task=config.task)
    headed = teacher.head is None
    classes = config.snapshot.classes
    space = own.answers.model.space(model_config) if headed else named(classes) if classes else None
    own.answers.model.check_model(
        own, model=teacher, space=space if headed else None, model_config=model_config if headed else None
    )
    return TeacherHead(
        space=space,
        tokens=getattr(processor, "tokens_fingerprint", None),
        widths=_widths(model_config),
        notes=_notes(model_config, processor, teacher.model),
    )


def _notes(model_config: Any, processor: Processor, url: str) -> tuple[str, ...]:
    """Return a note about tokens that a model does not embed: some tokenizers have more."""
    text_config = getattr(model_config, "get_text_config", lambda: None)()
    embedded, tokens = getattr(text_config, "vocab_size", None), token_count(processor)
    if not isinstance(embedded, int) or tokens <= embedded:
        return ()
    return (
        f"the tokenizer of {url} has token ids up to {tokens - 1}, and the model embeds {embedded} tokens: it fails on "
        f"rows with higher ids, which are quarantined; if the data have such tokens, save the model again after "
        f"resize_token_embeddings({tokens})",
    )


def _widths(model_config: Any) -> tuple[int, ...] | None:
    """Return the widths of the states of a plain stack of layers; None of other architectures."""
    text = model_config.get_text_config()
    depth, width = (getattr(text, name, None) for name in ("num_hidden_layers", "hidden_size"))
    if getattr(model_config, "is_encoder_decoder", False) or not isinstance(depth, int) or not isinstance(width, int):
        return None
    return (width,) * (depth + 1)


def _check_arguments(teacher: TeacherConfig) -> None:
    """Refuse arguments that the function does not take, without calling it."""
    signature = inspect.signature(import_factory(teacher.model))
    try:
        signature.bind(**teacher.arguments)
    except TypeError as error:
        raise ConfigError(
            f"labels.teacher.arguments: {teacher.model} takes {signature}, found {dict(teacher.arguments)}: {error}"
        ) from error


def _with_layers(config: Campaign, found: TeacherHead) -> TeacherHead:
    hidden = config.labels.hidden
    assert found.widths is not None
    layers = resolve_layers(hidden.layers, len(found.widths))
    if found.spatial and hidden.pool in ("cls", "last"):
        raise ModelError(
            f"labels.hidden.pool is {hidden.pool}: the states of {config.labels.teacher.model} are feature maps, which "
            "have no such token; set it to mean or token"
        )
    narrowest = min(found.widths[layer] for layer in layers)
    if hidden.rank is not None and hidden.rank > narrowest:
        raise ConfigError(
            f"labels.hidden.rank is {hidden.rank}, and the teacher's states of layers {list(layers)} have at least "
            f"{narrowest} dimensions: set it to {narrowest} or less"
        )
    return replace(found, layers=layers)
