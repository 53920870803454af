"""Define the trained module: student, projections of hidden states, optional fused head.

The projections are saved with the optimiser state and are not exported with the student.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_distill.errors import ConfigError, ModelError
from ray_distill.losses.fused import FusedHead, HeadRequest
from ray_distill.models.core.forward import States, forward, forward_body, place_batch, pool_hidden
from ray_distill.models.core.head_extraction import body_and_head
from ray_distill.models.core.model import Model
from ray_distill.tasks.encoded import Batch

log = logging.getLogger(__name__)

#: The batch's entry with the answered positions: int64 ``[N]`` indices into the flat ``[B * L]`` tokens. For a batch
#: without this entry the student gives one answer a row.
PLACES = "places"


class StudentModule(nn.Module):
    """The student with its projections.

    `forward` returns logits ``[N, V]`` at N positions, or the requested losses.

    With a ``request`` and a fused head, `forward` computes the losses without the logits. A fused head replaces the
    student's own head on the same parameters, so the weights keep their names. A student that is not fused, or whose
    head is more than a linear map (scaled or capped logits), is run whole and returns logits.

    Args:
        student: the model to train, with its own head.
        projections: by student layer, the map from its width to the teacher's.
        plain: student layers whose states are also returned without a projection.
        pool: how a row's states are pooled if it has one answer; ``token`` keeps all states.
        fuse: whether to fuse the head with its losses.
    """

    def __init__(
        self,
        student: nn.Module,
        projections: Mapping[int, nn.Module],
        plain: Sequence[int] = (),
        *,
        pool: str = "token",
        fuse: bool = False,
    ) -> None:
        super().__init__()
        self.fused = _fuse(student) if fuse else None
        self.student = student
        self.projections = nn.ModuleDict({str(layer): module for layer, module in projections.items()})
        self.layers = tuple(sorted({*projections, *plain}))
        self.plain = tuple(plain)
        self.pool = pool

    @property
    def computing(self) -> nn.Module:
        """The submodule that `forward` calls, without the fused head."""
        return self.student if self.fused is None else self.student.get_submodule(self.fused[0])

    def forward(
        self, inputs: Batch, request: HeadRequest | None = None
    ) -> tuple[Tensor, dict[int, Tensor], tuple[Tensor, Tensor, Tensor] | None, dict[int, Tensor]]:
        """Run the student.

        Returns:
            Logits, ``[N, 0]`` if a fused head computes losses; the projected states by student layer; those losses, or
            None; and the states of `plain` layers without projection. States are ``[N, D]`` at the answered positions,
            or pooled like the teacher's.
        """
        found = place_batch(self.student, inputs)
        places_N = found.pop(PLACES, None)
        if self.fused is None:
            output = forward(self.student, found, self.layers)
            projected, plain = self._hidden(output, places_N)
            return _at(output.logits_BV, places_N), projected, None, plain
        body, head = (self.student.get_submodule(name) for name in self.fused)
        last = forward_body(body, head, found, self.layers)
        states_ND, (projected, plain) = _at(last.last_BLD, places_N), self._hidden(last, places_N)
        if request is None:
            return head(states_ND), projected, None, plain
        return states_ND[:, :0], projected, head(states_ND, request), plain

    def _hidden(self, output: States, places_N: Tensor | None) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        if places_N is not None or self.pool == "token":
            states = {layer: _at(values, places_N) for layer, values in output.hidden.items()}
        else:
            states = {layer: pool_hidden(values, output.mask_BL, self.pool) for layer, values in output.hidden.items()}
        projected = {int(layer): module(states[int(layer)]) for layer, module in self.projections.items()}
        return projected, {layer: states[layer] for layer in self.plain}


def _at(values: Tensor, places_N: Tensor | None) -> Tensor:
    """Return the values of a batch's tokens at flat indices; all values if there are no indices."""
    return values if places_N is None else values.flatten(0, 1)[places_N]


def _fuse(student: nn.Module) -> tuple[str, str] | None:
    """Replace the student's head by a fused one, and return the names of body and head.

    The result is None if the head cannot be fused.
    """
    try:
        body, head = body_and_head(student)
    except ModelError as reason:
        log.warning("the student's head is not fused with its losses, so whole logits are kept in memory: %s", reason)
        return None
    names = {module: name for name, module in student.named_modules()}
    parent, _, own = names[head].rpartition(".")
    setattr(student.get_submodule(parent), own, FusedHead(head))
    return names[body], names[head]


def make_projections(
    model: Model, *, layers: Mapping[int, int], widths: Mapping[int, int], seed: int
) -> dict[int, nn.Linear]:
    """Return the projection of each layer pair, by student layer.

    A projection is a linear map from the student's width to the teacher's.

    Args:
        model: the student as it was built.
        layers: student layer to stored teacher layer.
        widths: width of each stored teacher layer.
        seed: seed of the maps' initial weights.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        student: _projection(model.widths[student], widths[teacher], generator) for student, teacher in layers.items()
    }


def layer_pairs(
    spec: str | Mapping[int, int], stored: Sequence[int], model: Model, loss: str = "hidden"
) -> dict[int, int]:
    """Return the stored teacher layer that each student layer matches.

    ``uniform`` spreads as many pairs as possible evenly over both models and always pairs the last layers; ``last``
    pairs only the last layers; a mapping is used unchanged. Layer 0, the embeddings, is only used when named. Layers of
    an encoder-decoder are those of its decoder.

    Raises:
        ConfigError: no states are stored, the student returns no hidden states, or a named layer does not exist. The
            message names the setting of ``loss``.
    """
    where = f"student.losses.{loss}.layers"
    if not stored:
        raise ConfigError(
            f"{where}: the label store has no hidden states; set labels.hidden.layers, and label again into a new "
            "store (labels.store)"
        )
    if model.layers < 1:
        raise ConfigError(f"{where}: the student {model.url} returns no hidden states; leave the loss out")
    if not isinstance(spec, str):
        return _named_pairs(spec, stored, model.layers, where)
    ordered = sorted(stored)
    pairs = 1 if spec == "last" else min(len(ordered), model.layers)
    return {round(i * model.layers / pairs): ordered[round(i * len(ordered) / pairs) - 1] for i in range(1, pairs + 1)}


def _named_pairs(spec: Mapping[int, int], stored: Sequence[int], layers: int, where: str) -> dict[int, int]:
    if not spec:
        raise ConfigError(f"{where}: no pair is given; set uniform, last, or {{student layer: stored teacher layer}}")
    for student, teacher in spec.items():
        if not 0 <= student <= layers:
            raise ConfigError(f"{where}: the student has layers 0 to {layers}, found {student}")
        if teacher not in stored:
            raise ConfigError(f"{where}: the store has the teacher layers {sorted(stored)}, found {teacher}")
    return dict(spec)


def _projection(width: int, target: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear map with initial weights from the generator alone.

    They are uniform within 1/√width, as torch's.
    """
    layer = nn.Linear(width, target)
    bound = width**-0.5
    with torch.no_grad():
        layer.weight.copy_((torch.rand(layer.weight.shape, generator=generator) * 2 - 1) * bound)
        layer.bias.zero_()
    return layer
