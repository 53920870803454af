"""The module that is trained: the student, beside it the projections of its hidden states, and perhaps a fused head.

The projections are saved with the optimiser and stay behind when the student is exported.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_distill.errors import ConfigError, ModelError
from ray_distill.losses.fused import Asked, FusedHead
from ray_distill.models.core.forward import States, forward, forward_body, place_batch, pool_hidden
from ray_distill.models.core.head_extraction import body_and_head
from ray_distill.models.core.model import Model
from ray_distill.tasks.encoded import Batch

log = logging.getLogger(__name__)

#: The batch's entry that says where answers are wanted: int64 ``[N]`` into the flat ``[B * L]`` tokens. A batch without
#: it is answered once a row.
PLACES = "places"


class StudentModule(nn.Module):
    """``forward(inputs, asked)`` answers at N positions: logits ``[N, V]``, or the losses ``asked`` for without them.

    A fused head takes the place of the student's own on the same parameters, so its weights keep their names. A student
    that is not fused, or whose head is more than a linear map (scaled or capped logits), is run whole and gives logits.

    Args:
        student: the model to train, with a head of its own.
        projections: by student layer, from its width to the teacher's.
        plain: student layers that are wanted without a projection, too.
        pool: how a row's states are pooled where it is answered once; ``token`` keeps them all.
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
        """The part that `forward` calls, without the fused head."""
        return self.student if self.fused is None else self.student.get_submodule(self.fused[0])

    def forward(
        self, inputs: Batch, asked: Asked | None = None
    ) -> tuple[Tensor, dict[int, Tensor], tuple[Tensor, Tensor, Tensor] | None, dict[int, Tensor]]:
        """Run the student.

        Returns:
            Logits, ``[N, 0]`` where a fused head gives losses; the projected states by student layer; those losses, or
            None; and the states of `plain` layers as they are. States are ``[N, D]`` at the answered places, or pooled
            as the teacher's were.
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
        if asked is None:
            return head(states_ND), projected, None, plain
        return states_ND[:, :0], projected, head(states_ND, asked), plain

    def _hidden(self, output: States, places_N: Tensor | None) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        if places_N is not None or self.pool == "token":
            states = {layer: _at(values, places_N) for layer, values in output.hidden.items()}
        else:
            states = {layer: pool_hidden(values, output.mask_BL, self.pool) for layer, values in output.hidden.items()}
        projected = {int(layer): module(states[int(layer)]) for layer, module in self.projections.items()}
        return projected, {layer: states[layer] for layer in self.plain}


def _at(values: Tensor, places_N: Tensor | None) -> Tensor:
    """Return the values of a batch's tokens at flat places; all of them where there are no places."""
    return values if places_N is None else values.flatten(0, 1)[places_N]


def _fuse(student: nn.Module) -> tuple[str, str] | None:
    """Replace the student's head; return the names of its body and head, or None where the head cannot be fused."""
    try:
        body, head = body_and_head(student)
    except ModelError as reason:
        log.warning("the student's head is not fused with its losses, which holds whole logits: %s", reason)
        return None
    names = {module: name for name, module in student.named_modules()}
    parent, _, own = names[head].rpartition(".")
    setattr(student.get_submodule(parent), own, FusedHead(head))
    return names[body], names[head]


def make_projections(
    model: Model, *, layers: Mapping[int, int], widths: Mapping[int, int], seed: int
) -> dict[int, nn.Linear]:
    """Return for each pair of layers a linear map from the student's width to the teacher's, by student layer.

    Args:
        model: what the student was built as.
        layers: student layer to stored teacher layer.
        widths: width of each stored teacher layer.
        seed: of the maps' first weights.
    """
    generator = torch.Generator().manual_seed(seed)
    return {ours: _projection(model.widths[ours], widths[theirs], generator) for ours, theirs in layers.items()}


def layer_pairs(
    spec: str | Mapping[int, int], stored: Sequence[int], model: Model, loss: str = "hidden"
) -> dict[int, int]:
    """Which student layer follows which stored teacher layer.

    ``uniform`` spreads as many pairs as possible evenly over both, the last always with the last; ``last`` is
    that one pair; a mapping is taken as it is. Layer 0, the embeddings, is only used when named. Of an encoder-decoder
    layers are those of its decoder.

    Raises:
        ConfigError: nothing is stored, the student shows no hidden states, or a named layer is not there; ``loss`` is
            whose setting it is.
    """
    where = f"student.losses.{loss}.layers"
    if not stored:
        raise ConfigError(f"{where}: the label store holds no hidden states; set labels.hidden.layers and label again")
    if model.layers < 1:
        raise ConfigError(f"{where}: the student {model.url} shows no hidden states; leave the loss out")
    if not isinstance(spec, str):
        return _named_pairs(spec, stored, model.layers, where)
    ordered = sorted(stored)
    pairs = 1 if spec == "last" else min(len(ordered), model.layers)
    return {round(i * model.layers / pairs): ordered[round(i * len(ordered) / pairs) - 1] for i in range(1, pairs + 1)}


def _named_pairs(spec: Mapping[int, int], stored: Sequence[int], layers: int, where: str) -> dict[int, int]:
    if not spec:
        raise ConfigError(f"{where}: no pair is given; say uniform, last, or {{student layer: stored teacher layer}}")
    for ours, theirs in spec.items():
        if not 0 <= ours <= layers:
            raise ConfigError(f"{where}: the student has layers 0 to {layers}, found {ours}")
        if theirs not in stored:
            raise ConfigError(f"{where}: the store holds the teacher layers {sorted(stored)}, found {theirs}")
    return dict(spec)


def _projection(ours: int, theirs: int, generator: torch.Generator) -> nn.Linear:
    """A linear map whose first weights depend on the generator alone (uniform within 1/√ours, as torch's)."""
    layer = nn.Linear(ours, theirs)
    bound = ours**-0.5
    with torch.no_grad():
        layer.weight.copy_((torch.rand(layer.weight.shape, generator=generator) * 2 - 1) * bound)
        layer.bias.zero_()
    return layer
