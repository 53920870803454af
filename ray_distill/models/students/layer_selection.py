"""Select the layers that a student takes over: of one stack, or of encoder and decoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ray_distill.config import StudentModel
from ray_distill.errors import ConfigError
from ray_distill.models.students.layer_copy import copy_stacks, depth_of, evenly_spaced, shorter, stacks_of

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

    @property
    def describe(self) -> dict[str, Any]:
        """For the model card: by layer of the student that of the teacher, and how many there are."""
        copied = {part: {str(index): layer for index, layer in enumerate(kept)} for part, kept in self.kept.items()}
        whole = list(self.kept) == [""]
        return {
            "copied_layers": copied[""] if whole else copied,
            "teacher_layers": self.depths[""] if whole else dict(self.depths),
        }

    def copy(self, source: nn.Module, student: nn.Module) -> None:
        """Copy all weights of the student from the teacher's module.

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
        )


def take_layers(teacher_config: Any, config: StudentModel, url: str) -> Taken:
    """Return the layers of a teacher that ``config.keep`` (and ``keep_encoder``) selects.

    Raises:
        ConfigError: it has fewer, or is not a stack of equal layers, or has no encoder.
    """
    assert config.keep is not None
    if not getattr(teacher_config, "is_encoder_decoder", False):
        if config.keep_encoder is not None:
            raise ConfigError(f"student.model.keep_encoder: the teacher {url} is not an encoder-decoder: leave it out")
        depth = depth_of(teacher_config, url)
        kept = evenly_spaced(config.keep, depth)
        return Taken(overrides=shorter(teacher_config, kept), kept={"": kept}, depths={"": depth})
    names = _names(teacher_config, url)
    depths = {part: int(getattr(teacher_config, name)) for part, name in names.items()}
    kept_counts = {ENCODER: config.keep_encoder or config.keep, DECODER: config.keep}
    halves = {part: evenly_spaced(kept_counts[part], depth) for part, depth in depths.items()}
    return Taken(overrides={names[part]: len(kept) for part, kept in halves.items()}, kept=halves, depths=depths)


def _names(teacher_config: Any, url: str) -> dict[str, str]:
    known = teacher_config.to_dict()
    for encoder, decoder in _DEPTHS:
        if encoder in known and decoder in known:
            return {ENCODER: encoder, DECODER: decoder}
    raise ConfigError(
        f"the teacher {url} ({type(teacher_config).__name__}) does not define how deep its encoder and "
        f"decoder are ({' or '.join(map(str, _DEPTHS))}), so no layers can be left out: use from: config"
    )
