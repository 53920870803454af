"""Select the layers that a student takes over: of one stack, or of encoder and decoder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ray_distill.config import StudentModel
from ray_distill.errors import ConfigError
from ray_distill.models.students.importance import LayerChoice
from ray_distill.models.students.layer_copy import Cut, copy_stacks, depth_of, evenly_spaced, shorter, stacks_of

#: Names that families use for the depths of their encoder and decoder.
_DEPTHS = (("num_layers", "num_decoder_layers"), ("encoder_layers", "decoder_layers"))

ENCODER, DECODER = "encoder", "decoder"


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The layers that are kept."""

    overrides: Mapping[str, Any]
    """Changes that make the teacher's config the student's."""
    kept: Mapping[str, tuple[int, ...]]
    """Layers of the teacher by the part they are in; the empty name stands for the whole model."""
    depths: Mapping[str, int]
    """How many layers the teacher has, likewise."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the choice, for the model card."""

    @property
    def describe(self) -> dict[str, Any]:
        """For the model card: by layer of the student that of the teacher, and how many there are."""
        copied = {part: {str(index): layer for index, layer in enumerate(kept)} for part, kept in self.kept.items()}
        whole = list(self.kept) == [""]
        return {
            "copied_layers": copied[""] if whole else copied,
            "teacher_layers": self.depths[""] if whole else dict(self.depths),
            **self.facts,
        }

    def copy(self, source: nn.Module, student: nn.Module, *, cut: Cut) -> None:
        """Copy all weights of the student from the teacher's module.

        Args:
            source: the teacher's.
            student: has the kept layers.
            cut: returns the part of a weight of the teacher that the student has, by name.

        Raises:
            ModelError: there are no such layers, or they do not fit.
        """
        copy_stacks(
            source,
            student,
            {
                stack: kept
                for part, kept in self.kept.items()
                for stack in stacks_of(source, student, kept, depth=self.depths[part], within=part)
            },
            cut=cut,
        )


def take_layers(
    teacher_config: Any, config: StudentModel, url: str, choice: LayerChoice | None, *, pooling: str | None = None
) -> Taken:
    """Return the layers of a teacher that ``keep``, ``keep_encoder`` and ``layers`` select.

    Args:
        teacher_config: its transformers config.
        config: how many layers, and by which rule.
        url: of the teacher, for messages.
        choice: layers by importance; None where they are not measured yet: evenly spaced ones stand in.
        pooling: of the student's last states; None = its class decides.

    Raises:
        ConfigError: it has fewer, or is not a stack of equal layers, or has no encoder.
    """
    if config.keep == 0 and pooling != "mean":
        raise ConfigError(
            "student.model.keep is 0: a student without layers is the mean of its tokens' embeddings, so the teacher "
            "must be an encoder with labels.teacher.head of pool: mean; keep 1 layer or more"
        )
    if not getattr(teacher_config, "is_encoder_decoder", False):
        if config.keep_encoder is not None:
            raise ConfigError(f"student.model.keep_encoder: the teacher {url} is not an encoder-decoder: leave it out")
        depth = depth_of(teacher_config, url)
        kept = _layers_of(config, depth, choice)
        facts = {} if choice is None else {"removed_layers": list(choice.removed), "kl_after_removal": list(choice.kl)}
        overrides = shorter(teacher_config, kept) | ({} if kept else _without_dropout(teacher_config))
        return Taken(overrides=overrides, kept={"": kept}, depths={"": depth}, facts=facts)
    if config.keep is None or config.layers != "evenly":
        raise ConfigError(
            f"student.model.layers is {_shown(config.layers)}, and the teacher {url} is an encoder-decoder, whose "
            "stacks are spaced evenly: leave it out, and set keep and keep_encoder"
        )
    names = _names(teacher_config, url)
    depths = {part: int(getattr(teacher_config, name)) for part, name in names.items()}
    kept_counts = {ENCODER: config.keep_encoder or config.keep, DECODER: config.keep}
    halves = {part: evenly_spaced(kept_counts[part], depth) for part, depth in depths.items()}
    return Taken(overrides={names[part]: len(kept) for part, kept in halves.items()}, kept=halves, depths=depths)


def _without_dropout(teacher_config: Any) -> dict[str, float]:
    """Return overrides that end every dropout of a student without layers.

    The mean over the tokens takes most of its noise away, and on a CPU it takes half of a step's time.
    """
    return {
        name: 0.0
        for name, value in teacher_config.to_dict().items()
        if isinstance(value, float) and name.endswith(("dropout", "dropout_prob"))
    }


def _layers_of(config: StudentModel, depth: int, choice: LayerChoice | None) -> tuple[int, ...]:
    if isinstance(config.layers, str):
        return evenly_spaced(depth if config.keep is None else config.keep, depth) if choice is None else choice.kept
    if config.layers[-1] >= depth:
        raise ConfigError(
            f"student.model.layers is {_shown(config.layers)}, but the teacher has {depth} layers: expected indices "
            f"from 0 to {depth - 1}"
        )
    return config.layers


def _shown(layers: str | tuple[int, ...]) -> str:
    return layers if isinstance(layers, str) else str(list(layers))


def _names(teacher_config: Any, url: str) -> dict[str, str]:
    known = teacher_config.to_dict()
    for encoder, decoder in _DEPTHS:
        if encoder in known and decoder in known:
            return {ENCODER: encoder, DECODER: decoder}
    raise ConfigError(
        f"the teacher {url} ({type(teacher_config).__name__}) does not define how deep its encoder and "
        f"decoder are ({' or '.join(map(str, _DEPTHS))}), so no layers can be left out: use from: config"
    )
