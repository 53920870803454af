"""An exponential moving average of the weights, which is what is judged and exported where it is asked for.

It is kept as one more state of the optimiser, beside each tensor that is optimised: so it is cut over the ranks as the
master weights are, lies in float32 where they lie, and is saved and resumed with them (`atoms`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ray_distill.students.engines.portable_state import Parts

#: Name of the state.
AVERAGE = "average"


class Average:
    """Averages the weights of one engine.

    ``a_t = d_t · a_(t-1) + (1 - d_t) · w_t`` with ``d_t = min(decay, (1 + t) / (10 + t))``, begun at ``a_1 = w_1``. The
    lesser decay of the first steps (as in TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``) lets short
    runs forget their first weights too.

    Args:
        decay: what is kept of the average at each step, in the end.
        optimizer: the one over master weights, whole or partitioned.
        parts: how the engine holds them, asked for anew each time they are exchanged.
    """

    def __init__(self, decay: float, optimizer: torch.optim.Optimizer, parts: Callable[[], Parts]) -> None:
        self._decay, self._optimizer, self._parts = decay, optimizer, parts

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights in, after a step."""
        for tensor, state in self._optimizer.state.items():
            if AVERAGE in state:
                state[AVERAGE].lerp_(tensor, 1 - decay_at(float(state["step"]), self._decay))
            else:
                state[AVERAGE] = tensor.detach().clone()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the model computes and is exported with the averages; collective. Then all is as it was, exactly."""
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
    """What is kept of the average at a step, counted from 1."""
    return min(decay, (1 + step) / (10 + step))
