"""Maintain an exponential moving average of the weights.

If it is configured, it is validated and exported in place of the weights.

The average is one more state of the optimiser, beside each optimised tensor. Therefore it is partitioned over the ranks
like the master weights, is in float32 on their device, and is saved and resumed with them (`portable_state`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ray_distill.students.engines.portable_state import StateAccess

#: Name of the state.
AVERAGE = "average"


class Average:
    """Exponential moving average of one engine's weights.

    ``a_t = d_t · a_(t-1) + (1 - d_t) · w_t`` with ``d_t = min(decay, (1 + t) / (10 + t))``, starting at ``a_1 = w_1``.
    The smaller decay of the first steps (as in TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``) lets the
    average of a short run lose the first weights too.

    Args:
        decay: share of the average that is kept at each step, after the first steps.
        optimizer: the optimiser of the master weights, whole or partitioned.
        parts: returns the engine's access to its states; called at each exchange.
    """

    def __init__(self, decay: float, optimizer: torch.optim.Optimizer, parts: Callable[[], StateAccess]) -> None:
        self._decay, self._optimizer, self._parts = decay, optimizer, parts

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the average, after a step."""
        for tensor, state in self._optimizer.state.items():
            if AVERAGE in state:
                state[AVERAGE].lerp_(tensor, 1 - decay_at(float(state["step"]), self._decay))
            else:
                state[AVERAGE] = tensor.detach().clone()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Use the averages as the model's weights inside the context; collective.

        On exit the weights are restored exactly.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        parts = self._parts()
        parts.release()
        for tensor, state in self._optimizer.state.items():
            if AVERAGE in state:
                weight = tensor.detach().clone()
                tensor.copy_(state[AVERAGE])
                state[AVERAGE].copy_(weight)
        parts.finish()


def decay_at(step: float, decay: float) -> float:
    """Return the share of the average that is kept at a step, counted from 1."""
    return min(decay, (1 + step) / (10 + step))
