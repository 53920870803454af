"""Helpers for students of all kinds: changed configs, fresh modules, copied layers."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ray_distill.config import TeacherConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.models.heads.pooled import is_pooled, new_pooled
from ray_distill.models.io.load import auto_class

#: Fields of a config that the snapshot's classes or the checkpoint itself decide.
_DECIDED = (
    "id2label",
    "label2id",
    "num_labels",
    "architectures",
    "model_type",
    "_name_or_path",
    "problem_type",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "auto_map",
)
#: Returns a part of a weight of the source, by its name there.
Cut = Callable[[str, Tensor], Tensor]
#: Fields that transformers derives from others and that go stale when those change.
_DERIVED = ("stage_names", "out_features", "out_indices", "_out_features", "_out_indices")


def whole(name: str, weight: Tensor) -> Tensor:
    """Return all of a weight."""
    return weight


def evenly_spaced(keep: int, of: int) -> tuple[int, ...]:
    """Return the ``keep`` of ``of`` layers of a student: first, last, and evenly between them."""
    if keep > of:
        raise ConfigError(f"student.model.keep is {keep}, but the teacher has {of} layers")
    return tuple(int(layer) for layer in np.rint(np.linspace(0, of - 1, keep)))


def depth_of(config: Any, url: str) -> int:
    """Number of layers of a teacher's config.

    Raises:
        ConfigError: it is not a stack of equal layers.
    """
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(depth, int):
        raise ConfigError(
            f"the teacher {url} ({type(config).__name__}) is not a stack of equal layers, so none can be "
            "left out: use from: config"
        )
    return depth


def changed_config(config: Any, overrides: Mapping[str, Any], decided: Mapping[str, Any]) -> Any:
    """Return a copy of a transformers config with overrides, and fields that the task decides.

    Raises:
        ConfigError: a field the config does not have, or that is decided elsewhere, or a value it refuses.
    """
    names = getattr(config, "attribute_map", {})
    values = {key: value for key, value in config.to_dict().items() if key not in (*_DECIDED, *_DERIVED)}
    for key in overrides:
        _check_field(key, {*values, *names}, type(config).__name__)
    changed = {names.get(key, key): value for key, value in overrides.items()}
    if names.get("num_hidden_layers", "num_hidden_layers") in changed:
        values.pop("layer_types", None)  # one entry a layer, made anew from the pattern's own settings
    values |= changed
    try:
        found = type(config)(**values)
    except Exception as error:
        raise ConfigError(
            f"student.model.overrides: {type(config).__name__} refuses {dict(overrides)}: {error}"
        ) from error
    found.architectures = config.architectures  # decides where a family has several classifiers
    for key, value in decided.items():
        setattr(found, key, value)
    return found


def copy_layers(source: nn.Module, student: nn.Module, kept: Sequence[int], depth: int) -> None:
    """Copy weights: layer i of the student from layer ``kept[i]``, all others by name.

    A stack is any `ModuleList` that has ``depth`` entries in the source and ``len(kept)`` in the student.

    Raises:
        ModelError: there is no such stack, or weights do not fit.
    """
    copy_stacks(source, student, dict.fromkeys(stacks_of(source, student, kept, depth=depth), kept))


def stacks_of(source: nn.Module, student: nn.Module, kept: Sequence[int], *, depth: int, within: str = "") -> list[str]:
    """List stacks of ``depth`` layers in the source that the student has, with ``kept`` layers.

    Args:
        source: has all layers.
        student: has the kept ones.
        kept: which.
        depth: how many the source has.
        within: only those that are in a part of this name; any where it is empty.

    Raises:
        ModelError: there is none.
    """
    lengths = {name: len(part) for name, part in student.named_modules() if isinstance(part, nn.ModuleList)}
    stacks = [
        name
        for name, part in source.named_modules()
        if isinstance(part, nn.ModuleList)
        and len(part) == depth
        and lengths.get(name) == len(kept)
        and (not within or within in name.split("."))
    ]
    if not stacks:
        raise ModelError(
            f"{type(source).__name__} has no list of {depth} layers{f' in its {within}' if within else ''}"
            ": layers cannot be copied from it"
        )
    return stacks


def copy_stacks(
    source: nn.Module, student: nn.Module, kept: Mapping[str, Sequence[int]], *, cut: Cut | None = None
) -> None:
    """Run `copy_layers` on several stacks, by name, each with its own layers kept.

    Args:
        source: has all layers.
        student: has the kept ones.
        kept: which, by stack.
        cut: returns the part of a weight of the source that the student has; default: all of it.

    Raises:
        ModelError: weights do not fit.
    """
    state, cut = source.state_dict(), cut or whole
    try:
        origins = {name: _origin(name, kept) for name in student.state_dict()}
        student.load_state_dict({name: cut(origin, state[origin]) for name, origin in origins.items()})
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"the layers of {type(source).__name__} do not fit the student: {error}") from error


def fresh(config: Any, own: TeacherConfig, task: str, seed: int) -> nn.Module:
    """Initialise a new model of the task's class, float32, on the CPU.

    It is a function of config and seed.

    Raises:
        ConfigError: the config does not make one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if is_pooled(config):
                return new_pooled(config)
            module: nn.Module = auto_class(task).from_config(
                config, dtype=torch.float32, trust_remote_code=own.trust_remote_code
            )
        except Exception as error:
            raise ConfigError(
                f"a student cannot be built from {type(config).__name__} with these overrides: {error}"
            ) from error
    return module


def shorter(config: Any, kept: Sequence[int]) -> dict[str, Any]:
    """Return overrides that leave ``kept`` layers: the count, and lists with an entry a layer."""
    depth = config.num_hidden_layers
    lists = {
        key: [value[layer] for layer in kept]
        for key, value in config.to_dict().items()
        if isinstance(value, list | tuple)
        and len(value) == depth
        and key not in (*_DECIDED, *_DERIVED)
        and not key.endswith("token_id")
    }
    return {**lists, "num_hidden_layers": len(kept)}


def _origin(name: str, kept: Mapping[str, Sequence[int]]) -> str:
    """Name in the source of the weight that the student calls ``name``."""
    for stack, layers in kept.items():
        if name.startswith(stack + "."):
            index, dot, rest = name[len(stack) + 1 :].partition(".")
            return f"{stack}.{layers[int(index)]}{dot}{rest}"
    return name


def _check_field(key: str, known: set[str], name: str) -> None:
    if key in _DECIDED:
        raise ConfigError(f"student.model.overrides.{key} is decided by the snapshot or the teacher: leave it out")
    if key not in known:
        near = difflib.get_close_matches(key, sorted(known), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(sorted(known))}"
        raise ConfigError(f"student.model.overrides.{key}: {name} has no such field{hint}")
