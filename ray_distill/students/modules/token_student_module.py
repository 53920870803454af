"""The module that is trained of a language model: hidden states at the answered positions, and a fused head.

Beside the student stand the projections of its hidden states, as in `bundle`.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ray_distill.errors import ModelError
from ray_distill.losses.fused import Asked, FusedHead
from ray_distill.models.core.forward import last_states, place_batch, spared, states_of, without_cache
from ray_distill.models.core.head_extraction import body_and_head
from ray_distill.students.modules.student_module import project
from ray_distill.tasks.encoded import Batch

log = logging.getLogger(__name__)

#: The batch's entry that says where answers are wanted: int64 ``[N]`` into the flat ``[B * L]`` tokens.
PLACES = "places"


class TokenBundle(nn.Module):
    """``forward(inputs, asked)`` answers at N positions: logits ``[N, V]``, or the losses ``asked`` for without them.

    The student's own head is replaced by a `FusedHead` on the same parameters, so its weights keep their names.
    A model whose head is more than a linear map (scaled or capped logits) is run whole and gives logits.
    """

    def __init__(self, student: nn.Module, projections: Mapping[int, nn.Module], plain: Sequence[int] = ()) -> None:
        super().__init__()
        self.fused = _fuse(student)
        self.student = student
        self.projections = nn.ModuleDict({str(layer): module for layer, module in projections.items()})
        self.layers = tuple(sorted({*projections, *plain}))
        self.plain = tuple(plain)

    @property
    def computing(self) -> nn.Module:
        """The part that `forward` calls, without the fused head."""
        return self.student if self.fused is None else self.student.get_submodule(self.fused[0])

    def forward(
        self, inputs: Batch, asked: Asked | None = None
    ) -> tuple[Tensor, dict[int, Tensor], tuple[Tensor, Tensor, Tensor] | None, dict[int, Tensor]]:
        """``(logits, {student layer: projected states [N, D]}, None, {layer: states [N, D]})``; logits are ``[N, 0]``
        where losses come, in the place of None. Layers with a projection come projected, those of ``plain`` as they
        are.
        """
        found = place_batch(self.student, inputs)
        places_N = found.pop(PLACES)
        # transformers keeps packed documents apart only without a cache.
        settings = {"output_hidden_states": bool(self.layers)}
        if self.fused is None:
            output = self.student(**found, **without_cache(self.student), **settings)
            hidden, plain = self._hidden(output, places_N)
            return output.logits.flatten(0, 1)[places_N], hidden, None, plain
        body, head = (self.student.get_submodule(name) for name in self.fused)
        with spared(body, head) as caught:
            output = body(**found, **without_cache(body), **settings)
        states_ND, (hidden, plain) = last_states(output, caught).flatten(0, 1)[places_N], self._hidden(output, places_N)
        if asked is None:
            return head(states_ND), hidden, None, plain
        return states_ND[:, :0], hidden, head(states_ND, asked), plain

    def _hidden(self, output: Any, places_N: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        states = {layer: states_of(output)[layer].flatten(0, 1)[places_N] for layer in self.layers}
        return project(self.projections, states), {layer: states[layer] for layer in self.plain}


def _fuse(student: nn.Module) -> tuple[str, str] | None:
    """Names of the student's body and of its head, which is replaced; None where it cannot be."""
    try:
        body, head = body_and_head(student)
    except ModelError as reason:
        log.warning("the student's head is not fused with its losses, which holds whole logits: %s", reason)
        return None
    names = {module: name for name, module in student.named_modules()}
    parent, _, own = names[head].rpartition(".")
    setattr(student.get_submodule(parent), own, FusedHead(head))
    return names[body], names[head]
