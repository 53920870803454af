"""The module that is trained: the student, and beside it the projections of its hidden states.

The projections are saved with the optimiser and stay behind when the student is exported.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_distill.errors import ConfigError
from ray_distill.models.core.forward import forward, pool_hidden
from ray_distill.models.core.model import Model
from ray_distill.tasks.encoded import Batch


class Bundle(nn.Module):
    """``forward(inputs) -> (logits [B, V], {layer: pooled and projected states}, None, {layer: pooled states})``.

    Layers with a projection come projected, those of ``plain`` as they are.
    """

    def __init__(
        self, student: nn.Module, projections: Mapping[int, nn.Module], pool: str, plain: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.student = student
        self.projections = nn.ModuleDict({str(layer): module for layer, module in projections.items()})
        self.layers = tuple(sorted({*projections, *plain}))
        self.plain = tuple(plain)
        self.pool = pool

    @property
    def computing(self) -> nn.Module:
        """The part that `forward` calls."""
        return self.student

    def forward(self, inputs: Batch) -> tuple[Tensor, dict[int, Tensor], None, dict[int, Tensor]]:
        """Run the student; hidden states are pooled as the teacher's were, then projected to its width."""
        output = forward(self.student, inputs, self.layers)
        pooled = {
            layer: states if self.pool == "token" else pool_hidden(states, output.mask_BL, self.pool)
            for layer, states in output.hidden.items()
        }
        return output.logits_BV, project(self.projections, pooled), None, {layer: pooled[layer] for layer in self.plain}


def project(projections: nn.ModuleDict, states: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """By student layer its projected states, of the layers that have a projection."""
    return {int(layer): module(states[int(layer)]) for layer, module in projections.items()}


def build_bundle(
    model: Model,
    student: nn.Module,
    *,
    layers: Mapping[int, int],
    widths: Mapping[int, int],
    pool: str,
    seed: int,
    plain: Sequence[int] = (),
) -> Bundle:
    """Put projections beside a student: for each pair of layers one, from the student's width to the teacher's.

    Args:
        model: what the student was built as.
        student: the module to train, a copy of the model's.
        layers: student layer to stored teacher layer.
        widths: width of each stored teacher layer.
        pool: how the teacher's states were pooled.
        seed: of the projections' first weights.
        plain: student layers that are wanted without a projection, too.
    """
    return Bundle(student, make_projections(model, layers=layers, widths=widths, seed=seed), pool, plain)


def make_projections(
    model: Model, *, layers: Mapping[int, int], widths: Mapping[int, int], seed: int
) -> dict[int, nn.Linear]:
    """By student layer a linear map from its width to the teacher's; arguments as in `build_bundle`."""
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
