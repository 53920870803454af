"""Load a model: a checkpoint, an encoder with a fitted head, a student, or a function's."""

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers  # its classes by full name: each is imported when it is used, which takes seconds
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.models.core.checkpoint_files import (
    check_beside,
    check_files,
    check_revision,
    checkpoint_digest,
    gguf_file,
    open_checkpoint,
    quiet,
    read_metadata,
)
from ray_distill.models.core.fingerprint import SPREAD, finish, place, state_digest, take_from_file, tried
from ray_distill.models.core.model import Factory, Model, ModelParts
from ray_distill.models.core.module_function import call_factory, check_annotated, is_factory, takes
from ray_distill.models.core.row_classes import named
from ray_distill.models.heads.fit_head import attach_head
from ray_distill.models.heads.pooled import is_pooled, read_pooled
from ray_distill.models.text.tokenizer_match import language_of, speaking
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.inputs.modality import Processor

_RESTORE = "if it loaded before, restore its files"


def auto_class(task: str) -> Any:
    """Return the transformers class that loads a task's models, and builds them from a config."""
    return getattr(transformers, get_task(task).auto_class)


def load_model(spec: str | TeacherConfig | StudentModel, *, task: str, head_url: str | None = None) -> Model:
    """Load a model, in eval mode, on its device and in its dtype.

    No model is downloaded.

    Language models may be one GGUF file, whose weights are unpacked to the dtype. The teacher's config decides which
    tokens of a text they learn; a folder alone has the setting that `save_model` wrote.

    A checkpoint is tried on one made-up example; a function's model runs only when it is used, so that a finished
    store opens with a teacher that throws.

    Args:
        spec: a checkpoint folder, an fsspec URL or ``module:function``, alone or with its settings.
        task: name of the task, which decides the head.
        head_url: folder that `fit_head` wrote, where ``spec.head`` is set.

    Raises:
        ModelError: there is no such checkpoint, it is neither safetensors nor GGUF, it has no head for the task, its
            revision is not the pinned one, or it does not run.
        ConfigError: the settings themselves are wrong.
        StorageError: the file system refused.
    """
    config = as_config(spec)
    get_task(task)
    if is_factory(config.model):
        return _from_factory(config, task, language_of(spec, {}, config.model))
    with open_checkpoint(config.model) as folder:
        digest = checkpoint_digest(folder)
        check_revision(digest, config.revision, config.model)
        check_files(folder, config.model)
        saved = read_metadata(folder)
        if config.revision is not None:
            check_beside(folder, saved, config.model, digest=digest)
        language = language_of(spec, saved, config.model)
        if saved.get("factory"):
            found = _from_saved_factory(config, task, folder, saved=saved, digest=digest, language=language)
        else:
            config = config.model_copy(update={"language": language or config.language})
            found = _from_checkpoint(config, task, folder, digest=digest, head_url=head_url)
        return replace(found, decision=saved["decision"]) if saved.get("decision") else found


def load_processor(spec: str | TeacherConfig | StudentModel, *, task: str) -> Processor:
    """Load only what encodes inputs: `load_model`'s processor, without reading the weights.

    A ``module:function`` with a parameter ``weights`` is called with False: every worker that encodes would keep a
    copy of the model else.

    Raises:
        ModelError, ConfigError, StorageError: as `load_model`.
    """
    config = as_config(spec)
    if is_factory(config.model):
        unweighted = {"weights": False} if takes(config.model, "weights") else {}
        parts = call_factory(config.model, {**config.arguments, **unweighted}, seed=0)
        return speaking(parts.processor, language_of(spec, {}, config.model), task=task)
    with open_checkpoint(config.model, weights=False) as folder:
        saved = read_metadata(folder)
        language = language_of(spec, saved, config.model)
        if saved.get("factory"):
            parts = _call_saved(saved["factory"], config.model)
            return speaking(parts.processor, language, task=task, max_length=saved.get("max_length"))
        config = config.model_copy(update={"language": language or config.language})
        return read_processor(folder, read_config(folder, config), config, task=task)


def as_config(spec: str | TeacherConfig | StudentModel) -> TeacherConfig:
    """Return the settings of any model as a teacher's, which has them all."""
    if isinstance(spec, TeacherConfig):
        return spec
    if isinstance(spec, str):
        return TeacherConfig(model=spec)
    assert spec.model is not None, "only students of a checkpoint or a function have a model of their own"
    return TeacherConfig(
        model=spec.model, arguments=spec.arguments, max_length=spec.max_length, trust_remote_code=spec.trust_remote_code
    )


def read_config(folder: Path, config: TeacherConfig) -> Any:
    """Read the checkpoint's transformers config.

    Raises:
        ModelError: there is none, or this version of transformers cannot read it.
    """
    file = gguf_file(folder)
    if file is not None:
        check_files(folder, config.model)
    elif not (folder / "config.json").is_file():
        raise ModelError(f"{config.model} is not a transformers checkpoint: it has no config.json")
    try:
        return transformers.AutoConfig.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=config.trust_remote_code,
            **({"gguf_file": file} if file else {}),
        )
    except Exception as error:
        raise ModelError(f"cannot read the config of {config.model}: {error}; {_RESTORE}") from error


def read_processor(folder: Path, model_config: Any, config: TeacherConfig, *, task: str) -> Processor:
    """Read the checkpoint's tokenizer or image processor, as the task's inputs do.

    Raises:
        ModelError: it has none, or one that cannot be used.
        ConfigError: the language settings are wrong.
    """
    return get_task(task).inputs.read_processor(folder, model_config, config)


def read_module(
    folder: Path,
    config: TeacherConfig,
    *,
    task: str,
    complete: bool = True,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> nn.Module:
    """Read a checkpoint with the head of the task's class, on the CPU.

    Args:
        folder: local checkpoint.
        config: its settings, for messages and ``trust_remote_code``.
        task: name of the task.
        complete: refuse a checkpoint that lacks weights; else they are initialised.
        dtype: of the weights. Values that a model computes once (rotary angles) keep the digits they need, which
            a module that is cast afterwards does not.
        options: passed on to ``from_pretrained``.

    Raises:
        ModelError: it cannot be loaded, or lacks the head.
    """
    file = gguf_file(folder)
    source = {"gguf_file": file} if file else {"use_safetensors": True}
    settings = {"local_files_only": True, "dtype": dtype, **source, "ignore_mismatched_sizes": True, **options}
    own = None if file else read_config(folder, config)
    try:
        module: nn.Module
        with quiet():
            if is_pooled(own):
                module, info = read_pooled(folder, own, **settings)
            else:
                module, info = auto_class(task).from_pretrained(
                    folder, output_loading_info=True, trust_remote_code=config.trust_remote_code, **settings
                )
    except Exception as error:
        raise ModelError(f"cannot load {config.model} for {task}: {error}; {_RESTORE}") from error
    if "ignore_mismatched_sizes" not in options:
        _refuse_other_sizes(info["mismatched_keys"], config.model)
    missing = sorted(info["missing_keys"])
    if complete and missing:
        raise ModelError(
            f"{config.model} has no weights for {', '.join(missing[:4])}: it is no {type(module).__name__}"
            f"{get_task(task).answers.model.HEADLESS}"
        )
    return module


def _refuse_other_sizes(found: Iterable[tuple[str, Sequence[int], Sequence[int]]], url: str) -> None:
    """Refuse weights whose shapes are not those that the config states.

    Args:
        found: name, shape of the weights, shape by the config.
        url: the checkpoint.
    """
    sizes = [f"{name} is {list(shape)}, expected {list(stated)}" for name, shape, stated in sorted(found)]
    if sizes:
        more = f" and {len(sizes) - 3:,} more" if len(sizes) > 3 else ""
        raise ModelError(
            f"{url} has weights of other sizes than its config.json states: {'; '.join(sizes[:3])}{more}: correct "
            "config.json (a head has as many rows as id2label has classes), or save the model again"
        )


def _from_checkpoint(config: TeacherConfig, task: str, folder: Path, *, digest: str, head_url: str | None) -> Model:
    model_config = read_config(folder, config)
    processor = read_processor(folder, model_config, config, task=task)
    identity: dict[str, Any] = {"checkpoint": digest, "dtype": config.dtype}
    describe: dict[str, Any] = {"source": "checkpoint", "checkpoint": digest, "dtype": config.dtype}
    own = get_task(task)
    space = None if config.head else renamed(own.answers.model.space(model_config), config)
    own.answers.model.check_model(own, model=config, space=space, model_config=None if config.head else model_config)
    if space is not None:
        module = _read_placed(folder, config, task)
    else:
        module, head = attach_head(folder, config, digest=digest, head_url=head_url)
        space = named(head.classes)
        identity["head"] = describe["head"] = head.fingerprint
        module = place(module, dtype=config.dtype, device=config.device)
    return tried(finish(module, processor, space, task=task, url=config.model, identity=identity, describe=describe))


def _read_placed(folder: Path, config: TeacherConfig, task: str) -> nn.Module:
    """Read a checkpoint to its dtype and device, or to several."""
    dtype = getattr(torch, config.dtype)
    if config.device != SPREAD:
        return place(read_module(folder, config, task=task, dtype=dtype), dtype=None, device=config.device)
    if importlib.util.find_spec("accelerate") is None:
        raise ModelError(
            "labels.teacher.device: spread needs the optional package accelerate: pip install accelerate, "
            "on every machine that loads the teacher"
        )
    module = read_module(folder, config, task=task, dtype=dtype, device_map="auto")
    take_from_file(module)
    return module


def _from_factory(config: TeacherConfig, task: str, language: LanguageConfig | None) -> Model:
    parts = call_factory(config.model, config.arguments, seed=0)
    space = _space_of(parts, config, task)
    factory = Factory(name=config.model, arguments=config.arguments)
    identity = {"weights": state_digest(parts.module), "dtype": config.dtype, "factory": factory.to_dict()}
    check_revision(str(identity["weights"]), config.revision, config.model)
    module = place(parts.module, dtype=config.dtype, device=config.device)
    processor = speaking(parts.processor, language, task=task)
    return finish(
        module,
        processor,
        space,
        task=task,
        url=config.model,
        identity=identity,
        factory=factory,
        describe={"source": "module", "dtype": config.dtype},
    )


def _from_saved_factory(
    config: TeacherConfig,
    task: str,
    folder: Path,
    *,
    saved: dict[str, Any],
    digest: str,
    language: LanguageConfig | None,
) -> Model:
    parts = _call_saved(saved["factory"], config.model)
    path = folder / "model.safetensors"
    try:
        parts.module.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"the weights of {config.model} do not fit what {saved['factory']['name']} builds: {error}"
        ) from error
    space = _space_of(parts, config, task)
    module = place(parts.module, dtype=config.dtype, device=config.device)
    processor = speaking(parts.processor, language, task=task, max_length=saved.get("max_length"))
    return finish(
        module,
        processor,
        space,
        task=task,
        url=config.model,
        identity={"checkpoint": digest, "dtype": config.dtype},
        factory=Factory(name=saved["factory"]["name"], arguments=saved["factory"]["arguments"]),
        describe={"source": "checkpoint", "checkpoint": digest, "dtype": config.dtype},
    )


def _space_of(parts: ModelParts, config: TeacherConfig, task: str) -> AnswerSpace:
    """Return the classes of a function's model, checked by the task's family."""
    own = get_task(task)
    space = renamed(own.answers.model.space_of(parts.module, parts.classes, config.model), config)
    own.answers.model.check_model(own, model=config, space=space, model_config=None)
    return space


def renamed(space: AnswerSpace, config: TeacherConfig) -> AnswerSpace:
    """Return the classes under the names that the configuration gives them.

    Raises:
        ConfigError: the model has another number of classes, or none with names.
    """
    if config.classes is None:
        return space
    if len(config.classes) != len(space.names):
        raise ConfigError(
            f"labels.teacher.classes has {len(config.classes):,} names ({', '.join(config.classes[:5])}), and "
            f"{config.model} answers with {len(space.names):,} named classes: list one name an output, in their order"
        )
    return named(config.classes)


def _call_saved(factory: Any, url: str) -> ModelParts:
    """Call the function a saved model names, if it is one that builds models."""
    if not isinstance(factory, dict) or set(factory) != {"name", "arguments"} or not is_factory(str(factory["name"])):
        raise ModelError(f"{url} names no module:function in its metadata, found {factory!r}: it is damaged")
    check_annotated(factory["name"])
    return call_factory(factory["name"], factory["arguments"], seed=0)
