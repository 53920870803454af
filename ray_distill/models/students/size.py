"""Choose the shape of a student by its size: a share of its teacher's parameters.

Nothing is read but the teacher's config and tokenizer, so that the same file gives the same shape on every machine:

    stages of convolutions    widths and blocks by one factor, in steps of a 64th, then widths up to the size; drawn
    stacks of equal layers    fewer layers, down to a third of them; then narrower ones, by whole attention heads
    encoder and decoder       fewer layers, in both by one share
    classifiers of texts      whose token table is more than half of their teacher: as large a share of the layers as of
                              the parameters, and the most frequent tokens fill the rest; narrower layers where less
                              than a tenth of the tokens would stay

The widest student of at most the size is chosen, and of its width the deepest. So a greater size never gives a smaller
student. Narrower layers are copied where a rule cuts the teacher's family (`width.LAYOUTS`); others are drawn.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.errors import ConfigError
from ray_distill.models.core.checkpoint_files import open_checkpoint, read_metadata
from ray_distill.models.core.fingerprint import count_parameters
from ray_distill.models.core.module_function import is_factory
from ray_distill.models.io.load import read_config
from ray_distill.models.students.kind import StudentKind
from ray_distill.models.students.layer_copy import changed_config, fresh
from ray_distill.models.students.layer_selection import DECODER, ENCODER, take_layers
from ray_distill.models.students.vocabulary import token_bounds
from ray_distill.models.students.width import LAYOUTS, keep_width
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.inputs.modality import Processor

#: Least share of the layers, where layers may be narrower too.
LEAST_DEPTH = 1 / 3
#: Least share of the tokens, where layers may be narrower too.
LEAST_TOKENS = 1 / 10
#: Steps of the factor by which stages are made smaller, and the unit of their widths.
FACTORS, WIDTH_UNIT = 64, 4
#: Names that families use for the neurons of a layer.
_NEURONS = ("intermediate_size", "hidden_dim", "ffn_dim")


class _NotBuilt(ConfigError):
    """The architecture refuses a config that was made smaller."""


@dataclass(frozen=True, kw_only=True)
class SizedStudent:
    """A student that was chosen by its size."""

    model: StudentModel
    """Its shape, as a file would describe it."""
    parameters: int
    teacher_parameters: int
    describe: str
    """What is left of the teacher, in words."""

    @property
    def in_words(self) -> str:
        """Return what was chosen and reached."""
        share = self.parameters / self.teacher_parameters
        return f"{self.describe}: {self.parameters:,} of {self.teacher_parameters:,} parameters ({share:.4f})"


@dataclass(frozen=True, kw_only=True)
class Scalable:
    """A teacher of which students of any size are made."""

    base: StudentModel
    """Settings that do not depend on the size."""
    task: str
    own: TeacherConfig
    config: Any
    """The teacher's transformers config."""
    kind: StudentKind
    processor: Processor
    cuts_tokens: bool
    """Whether a classifier of texts may have fewer tokens than its teacher."""
    field: str
    """The setting that chooses, for messages."""

    def at(self, size: float) -> SizedStudent:
        """Return the largest student of at most this share of the teacher's parameters.

        Args:
            size: between 0 and 1, both exclusive.

        Raises:
            ConfigError: no student is so small.
        """
        most = math.floor(size * self.parameters)
        if self._staged:
            return self._stages(most)
        return self._stack(size, most)

    @cached_property
    def parameters(self) -> int:
        """Parameters of the teacher, with a head over the student's classes."""
        return self._count({})[0]

    @property
    def _staged(self) -> bool:
        return isinstance(getattr(self.config, "depths", None), list | tuple)

    def config_of(self, model: StudentModel) -> Any:
        """Return the transformers config of a student of `at`, with all tokens of its teacher."""
        overrides = dict(model.overrides) if model.source == "config" else self._overrides(model)
        return changed_config(self.config, overrides, self.kind.config_fields)

    def _count(self, overrides: Mapping[str, Any]) -> tuple[int, tuple[int, int]]:
        """Return parameters, and rows and columns of the token table (0 without one)."""
        key = repr(sorted(overrides.items()))
        if key not in self._counted:
            try:
                found = changed_config(self.config, overrides, self.kind.config_fields)
                with torch.device("meta"):
                    module = fresh(found, self.own, self.task, 0)
            except ConfigError as error:
                raise _NotBuilt(f"{self.field}: {error}") from error
            table = _token_table(module, found)
            self._counted[key] = count_parameters(module), table
        return self._counted[key]

    @cached_property
    def _counted(self) -> dict[str, tuple[int, tuple[int, int]]]:
        return {}

    def _overrides(self, model: StudentModel) -> dict[str, Any]:
        taken = take_layers(self.config, model, self.own.model, None)
        width = None
        if model.source == "teacher_width":
            width = keep_width(model, self.config, scores=None, url=self.own.model)
        return {**taken.overrides, **({} if width is None else width.overrides)}

    def _stages(self, most: int) -> SizedStudent:
        """Scale widths and depths of stages of convolutions by one factor."""
        config = self.config.to_dict()
        if not isinstance(config.get("hidden_sizes"), list | tuple):
            raise self._unscalable()
        depths, widths = [int(one) for one in config["depths"]], [int(one) for one in config["hidden_sizes"]]

        def scaled(depth_step: int, width_step: int) -> dict[str, Any]:
            found: dict[str, Any] = {
                "hidden_sizes": [_width(width, width_step / FACTORS) for width in widths],
                "depths": _fewer(depths, depth_step / FACTORS),
            }
            if isinstance(config.get("embedding_size"), int):
                found["embedding_size"] = _width(config["embedding_size"], width_step / FACTORS)
            return found

        def count(depth_step: int, width_step: int) -> int:
            return self._count(scaled(depth_step, width_step))[0]

        try:
            step = bisect_right(range(1, FACTORS), most, key=lambda step: count(step, step))
            if step == 0:
                raise self._too_small(most, count(1, 1))
            # A block less may leave room for wider stages.
            wider = bisect_right(range(step + 1, FACTORS + 1), most, key=lambda wide: count(step, wide))
            overrides = scaled(step, step + wider)
            parameters = self._count(overrides)[0]
        except _NotBuilt as error:
            raise self._unscalable() from error
        shown = f"hidden_sizes {overrides['hidden_sizes']} of {widths}, depths {overrides['depths']} of {depths}"
        return self._found({"from": "config", "overrides": overrides}, parameters, shown)

    def _stack(self, size: float, most: int) -> SizedStudent:
        depths = self._depths()
        depth = depths.get(DECODER, depths.get("", 1))
        fewest, all_tokens = self._tokens()
        groups = self._groups(depths)
        least = 1 if groups == 1 else math.ceil(LEAST_DEPTH * depth)
        if fewest:
            least = max(1, math.floor(size * depth))

        def count(group: int, keep: int, tokens: int = 0) -> int:
            parameters, (rows, columns) = self._count(self._values(self._shape(group, keep, groups, depths)))
            return parameters - (rows - tokens) * columns if tokens else parameters

        group = bisect_right(range(1, groups + 1), most, key=lambda group: count(group, least, fewest))
        if group == 0:
            raise self._too_small(most, count(1, 1 if fewest else least, fewest))
        keep = least
        if not fewest or count(group, least) <= most:  # all tokens fit
            keep += bisect_right(range(least + 1, depth + 1), most, key=lambda keep: count(group, keep))
        values, tokens = self._shape(group, keep, groups, depths), 0
        shown = [f"{keep} of {depth} layers", *([f"{group} of {groups} of the width"] if group < groups else [])]
        parameters, (rows, columns) = self._count(self._values(values))
        if fewest and (tokens := (most - parameters) // columns + rows) < all_tokens:
            values, parameters = {**values, "vocabulary": {"tokens": tokens}}, count(group, keep, tokens)
            shown.append(f"{tokens:,} of {all_tokens:,} tokens")
        return self._found(values, parameters, ", ".join(shown))

    def _depths(self) -> dict[str, int]:
        try:
            one = StudentModel.model_validate({"from": "teacher_layers", "keep": 1})
            return dict(take_layers(self.config, one, self.own.model, None).depths)
        except ConfigError as error:
            raise self._unscalable() from error

    def _groups(self, depths: Mapping[str, int]) -> int:
        """Return into how many equal parts the width may be cut; 1 = it may not."""
        if DECODER in depths:
            return 1
        heads = getattr(self.config, "num_attention_heads", None)
        if self.config.model_type in LAYOUTS:
            return int(getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads)
        width = getattr(self.config, "hidden_size", None)
        return heads if isinstance(heads, int) and isinstance(width, int) and width % heads == 0 else 1

    def _shape(self, group: int, keep: int, groups: int, depths: Mapping[str, int]) -> dict[str, Any]:
        """Return the fields of `StudentModel` for a width and a depth."""
        if group == groups:
            encoder = {}
            if ENCODER in depths:
                encoder = {"keep_encoder": max(1, round(keep / depths[DECODER] * depths[ENCODER]))}
            return {"from": "teacher_layers", "keep": keep, **encoder}
        if self.config.model_type in LAYOUTS:
            return {"from": "teacher_width", "width": round(group / groups, 4), "keep": keep}
        known = {*self.config.to_dict(), *getattr(self.config, "attribute_map", {})}
        neurons = [name for name in _NEURONS if name in known and isinstance(getattr(self.config, name), int)][:1]
        overrides = {
            "hidden_size": self.config.hidden_size // groups * group,
            "num_attention_heads": group,
            **{name: max(1, getattr(self.config, name) * group // groups) for name in neurons},
            "num_hidden_layers": keep,
        }
        return {"from": "config", "overrides": overrides}

    def _values(self, shape: Mapping[str, Any]) -> dict[str, Any]:
        model = StudentModel.model_validate(shape)
        return dict(model.overrides) if model.source == "config" else self._overrides(model)

    def _tokens(self) -> tuple[int, int]:
        """Return how many tokens must stay, and how many there are; 0 where all stay."""
        parameters, (rows, columns) = self._count({})
        if not self.cuts_tokens or 2 * rows * columns <= parameters:
            return 0, 0
        try:
            # Refused where answers are tokens.
            get_task(self.task).answers.model.student(
                StudentModel.model_validate({"vocabulary": {"tokens": rows}}),
                task=get_task(self.task),
                classes=("0", "1"),
                width=None,
                teacher=self.own,
                seed=0,
            )
            needed, every = token_bounds(self.processor, self.config, self.own.model)
        except ConfigError:
            return 0, 0
        return max(needed, math.ceil(LEAST_TOKENS * every)), every

    def _found(self, values: Mapping[str, Any], parameters: int, shown: str) -> SizedStudent:
        kept = {"max_length": self.base.max_length, "trust_remote_code": self.base.trust_remote_code}
        model = StudentModel.model_validate({**values, **kept})
        described = f"from {model.source}, {shown}"
        return SizedStudent(model=model, parameters=parameters, teacher_parameters=self.parameters, describe=described)

    def _too_small(self, most: int, least: int) -> ConfigError:
        share = math.ceil(1000 * least / self.parameters) / 1000
        return ConfigError(
            f"{self.field}: a student of {most:,} parameters cannot be made of {self.own.model}, which has "
            f"{self.parameters:,}; the smallest one has {least:,}: set student.size to {share:g} or more, or describe "
            "a smaller student as student.model (from: config with overrides, checkpoint or module)"
        )

    def _unscalable(self) -> ConfigError:
        return ConfigError(
            f"{self.field}: the teacher {self.own.model} ({type(self.config).__name__}) is neither a stack of equal "
            "layers nor has stages of hidden_sizes and depths, so no student of a size can be made of it: set "
            "student.model instead, e.g. from: config with overrides, or from: checkpoint"
        )


def open_scalable(
    base: StudentModel,
    *,
    task: str,
    classes: tuple[str, ...],
    teacher: TeacherConfig,
    field: str,
    cuts_tokens: bool = True,
) -> Scalable:
    """Open config and tokenizer of a teacher; weights are not read.

    Args:
        base: settings that do not depend on the size.
        task: name of the task.
        classes: names of the classes; two stand in where they are not known.
        teacher: the teacher.
        field: the setting that chooses, for messages.
        cuts_tokens: whether a classifier of texts may have fewer tokens than its teacher.

    Raises:
        ConfigError: it is a function.
        ModelError, StorageError: its config or tokenizer cannot be read.
    """
    own = teacher.model_copy(update={"max_length": base.max_length or teacher.max_length})
    if is_factory(own.model):
        raise _no_config(own.model, field)
    with open_checkpoint(own.model, weights=False) as folder:
        if read_metadata(folder).get("factory"):
            raise _no_config(own.model, field)
        config = read_config(folder, own)
        family = get_task(task).answers.model
        kind = family.student(base, task=get_task(task), classes=classes, width=None, teacher=teacher, seed=0)
        processor = kind.teacher_processor(folder, config, own)
    return Scalable(
        base=base,
        task=task,
        own=own,
        config=config,
        kind=kind,
        processor=processor,
        cuts_tokens=cuts_tokens,
        field=field,
    )


def _no_config(url: str, field: str) -> ConfigError:
    return ConfigError(
        f"{field}: the teacher {url} is a function, which has no config that could be made smaller: set student.model "
        "instead, from: checkpoint or module"
    )


def _width(width: int, factor: float) -> int:
    return min(width, max(WIDTH_UNIT, WIDTH_UNIT * round(width * factor / WIDTH_UNIT)))


def _fewer(depths: Sequence[int], factor: float) -> list[int]:
    """Return a share of all blocks.

    Each is left out of the stage that is the deepest then, of equally deep ones of the first.
    """
    found = list(depths)
    for _ in range(sum(depths) - max(len(depths), round(sum(depths) * factor))):
        deepest = max(range(len(found)), key=lambda stage: (found[stage], -stage))
        found[deepest] -= 1
    return found


def _token_table(module: Any, config: Any) -> tuple[int, int]:
    """Return rows and columns of the token embeddings; 0 without any."""
    if not isinstance(getattr(config, "vocab_size", None), int):
        return 0, 0
    try:
        weight = module.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        return 0, 0
    return int(weight.shape[0]), int(weight.shape[1])
