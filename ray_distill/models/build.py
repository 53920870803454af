"""Make a student: fresh from a config, from a teacher's layers, from a checkpoint or from a function."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.models.checkpoint import check_files, check_revision, checkpoint_digest, open_checkpoint, read_metadata
from ray_distill.models.factory import call_factory, check_annotated, is_factory, takes
from ray_distill.models.finish import finish, input_of, state_digest, tried
from ray_distill.models.load import as_config, auto_class, class_names, read_classifier, read_config, read_processor
from ray_distill.models.model import Factory, Model
from ray_distill.models.processors import ImageProcessor, TextProcessor, resized
from ray_distill.tasks.base import Processor

#: Fields of a config that the snapshot's classes or the checkpoint itself decide.
_DECIDED = ("id2label", "label2id", "num_labels", "architectures", "model_type", "_name_or_path", "problem_type",
            "transformers_version", "dtype", "torch_dtype", "auto_map")
#: Fields that transformers derives from others and that go stale when those change.
_DERIVED = ("stage_names", "out_features", "out_indices", "_out_features", "_out_indices")


def build_student(
    config: StudentModel, *, task: str, classes: tuple[str, ...], teacher: TeacherConfig, seed: int
) -> Model:
    """Make a student with ``classes`` as its outputs, in that order; float32, on the CPU, in eval mode.

    The same arguments give the same weights. A student from the teacher's config or layers gets the teacher's
    processor too.

    Raises:
        ConfigError: overrides the config does not have, more layers than there are, a function with other classes.
        ModelError: the teacher or checkpoint cannot be loaded, or the student does not run.
        StorageError: the file system refused.
    """
    input_of(task)
    if config.source == "module":
        return _from_module(config, task, classes, seed)
    if config.source == "checkpoint":
        own = as_config(config)
        if is_factory(own.model):
            raise ConfigError(f"student.model.model {own.model} is a function: set from: module")
        with open_checkpoint(own.model) as folder:
            return _from_checkpoint(own, task, classes, seed, folder)
    if is_factory(teacher.model):
        raise ConfigError(f"the teacher {teacher.model} is a function, so there is no config or layers to start a "
                          "student from: set student.model.from to checkpoint or module")
    own = teacher.model_copy(update={"max_length": config.max_length or teacher.max_length})
    with open_checkpoint(teacher.model, weights=config.source == "teacher_layers") as folder:
        if config.source == "teacher_layers":
            return _from_layers(config, own, task, classes, seed, folder)
        return _from_config(config, own, task, classes, seed, folder)


def evenly_spaced(keep: int, of: int) -> tuple[int, ...]:
    """The ``keep`` of ``of`` layers that a student takes over: the first, the last, and evenly between them."""
    if keep > of:
        raise ConfigError(f"student.model.keep is {keep}, but the teacher has {of} layers")
    return tuple(int(layer) for layer in np.rint(np.linspace(0, of - 1, keep)))


def _from_config(
    config: StudentModel, teacher: TeacherConfig, task: str, classes: tuple[str, ...], seed: int, folder: Path
) -> Model:
    teacher_config = read_config(folder, teacher)
    student_config = changed_config(teacher_config, config.overrides, classes)
    processor = _fit_processor(read_processor(folder, student_config, teacher, task=task), config.overrides)
    module = _fresh(student_config, teacher, task, seed)
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
    depth = getattr(teacher_config, "num_hidden_layers", None)
    if not isinstance(depth, int):
        raise ConfigError(f"the teacher {teacher.model} ({type(teacher_config).__name__}) is no stack of equal layers, "
                          "so none can be left out: use from: config")
    assert config.keep is not None
    kept = evenly_spaced(config.keep, depth)
    student_config = changed_config(teacher_config, _shorter(teacher_config, kept), classes)
    processor = read_processor(folder, student_config, teacher, task=task)
    student = _fresh(student_config, teacher, task, seed)
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
        raise ConfigError(f"student.model.model {config.model!r} is not module:function: for a folder use from: "
                          "checkpoint")
    check_annotated(config.model)
    arguments = dict(config.arguments)
    if takes(config.model, "classes"):
        arguments.setdefault("classes", list(classes))
    parts = call_factory(config.model, arguments, task=task, seed=seed)
    if parts.classes != classes:
        raise ConfigError(f"{config.model} has the classes {list(parts.classes)}, the snapshot {list(classes)}: give "
                          "the function a parameter `classes`, which is then filled in")
    return _finish(parts.module.float(), parts.processor, classes, task, config.model, {"source": "module"},
                   factory=Factory(name=config.model, arguments=arguments))


def changed_config(config: Any, overrides: Mapping[str, Any], classes: Sequence[str]) -> Any:
    """A copy of a transformers config with overrides and class names.

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
            f"student.model.overrides: {type(config).__name__} refuses {dict(overrides)}: {error}") from error
    found.architectures = config.architectures  # decides where a family has several classifiers
    found.id2label = dict(enumerate(classes))
    found.label2id = {name: index for index, name in enumerate(classes)}
    return found


def copy_layers(source: nn.Module, student: nn.Module, kept: Sequence[int], depth: int) -> None:
    """Copy weights: layer i of the student from layer ``kept[i]`` of the source, all else as it is named.

    A stack is any `ModuleList` that has ``depth`` entries in the source and ``len(kept)`` in the student.

    Raises:
        ModelError: there is no such stack, or weights do not fit.
    """
    lengths = {name: len(part) for name, part in student.named_modules() if isinstance(part, nn.ModuleList)}
    stacks = [name for name, part in source.named_modules()
              if isinstance(part, nn.ModuleList) and len(part) == depth and lengths.get(name) == len(kept)]
    if not stacks:
        raise ModelError(f"{type(source).__name__} has no list of {depth} layers: layers cannot be copied from it")
    state = source.state_dict()
    try:
        student.load_state_dict({name: state[_origin(name, stacks, kept)] for name in student.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"the layers of {type(source).__name__} do not fit the student: {error}") from error


def reorder_classes(module: nn.Module, found: Sequence[str], wanted: Sequence[str], url: str) -> None:
    """Permute a classification head in place so that its outputs stand in another order of the same names.

    Raises:
        ModelError: it is not clear which layer is the head.
    """
    if tuple(found) == tuple(wanted):
        return
    heads = [part for name, part in module.named_modules()
             if isinstance(part, nn.Linear) and part.out_features == len(found)
             and name.rpartition(".")[2] in ("classifier", "score", "out_proj", "head", "fc")]
    if len(heads) != 1:
        raise ModelError(f"{url} has its classes in the order {list(found)}, wanted is {list(wanted)}, and which "
                         "layer to permute is not clear: give snapshot.classes in the checkpoint's order")
    order = torch.tensor([list(found).index(name) for name in wanted])
    with torch.no_grad():
        for values in (heads[0].weight, heads[0].bias):
            if values is not None:
                values.copy_(values[order])


def _fresh(config: Any, own: TeacherConfig, task: str, seed: int) -> nn.Module:
    """A newly initialised classifier; a function of config and seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module: nn.Module = auto_class(task).from_config(
                config, dtype=torch.float32, trust_remote_code=own.trust_remote_code)
        except Exception as error:
            raise ConfigError(f"a student cannot be built from {type(config).__name__} with these overrides: "
                              f"{error}") from error
    return module


def _with_classes(folder: Path, own: TeacherConfig, task: str, classes: Sequence[str], seed: int) -> nn.Module:
    """Read a checkpoint as a classifier of these classes; a head that is missing or of another size is new."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return read_classifier(
            folder, own, task=task, complete=False, ignore_mismatched_sizes=True, id2label=dict(enumerate(classes)),
            label2id={name: index for index, name in enumerate(classes)})


def _shorter(config: Any, kept: Sequence[int]) -> dict[str, Any]:
    """Overrides that leave ``kept`` layers: the count, and every list with one entry a layer."""
    depth = config.num_hidden_layers
    lists = {key: [value[layer] for layer in kept] for key, value in config.to_dict().items()
             if isinstance(value, list | tuple) and len(value) == depth and key not in (*_DECIDED, *_DERIVED)}
    return {**lists, "num_hidden_layers": len(kept)}


def _origin(name: str, stacks: Sequence[str], kept: Sequence[int]) -> str:
    """Name in the source of the weight that the student calls ``name``."""
    for stack in stacks:
        if name.startswith(stack + "."):
            index, dot, rest = name[len(stack) + 1 :].partition(".")
            return f"{stack}.{kept[int(index)]}{dot}{rest}"
    return name


def _check_field(key: str, known: set[str], name: str) -> None:
    if key in _DECIDED:
        raise ConfigError(f"student.model.overrides.{key} is decided by the snapshot or the teacher: leave it out")
    if key not in known:
        near = difflib.get_close_matches(key, sorted(known), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(sorted(known))}"
        raise ConfigError(f"student.model.overrides.{key}: {name} has no such field{hint}")


def _fit_processor(processor: TextProcessor | ImageProcessor, overrides: Mapping[str, Any]) -> Processor:
    """The teacher's processor, at the student's image size where that was changed."""
    size = overrides.get("image_size")
    if isinstance(processor, ImageProcessor) and isinstance(size, int):
        return resized(processor, size)
    return processor


def _finish(
    module: nn.Module, processor: Processor, classes: tuple[str, ...], task: str, url: str, describe: Mapping[str, Any],
    factory: Factory | None = None,
) -> Model:
    identity = {"weights": state_digest(module), "dtype": "float32"}
    return tried(finish(
        module, processor, classes, task=task, url=url, identity=identity, factory=factory, describe=describe))
