"""Access master weights and optimiser states that ZeRO has partitioned.

The module uses attributes of DeepSpeed's optimisers without importing DeepSpeed.

Reads gather whole tensors with DeepSpeed's own collectives. Writes set each rank's own partition.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ray_distill.errors import TrainingError
from ray_distill.students.engines.portable_state import (
    WEIGHT,
    StateAccess,
    WholeStateAccess,
    counted_steps,
    make_states,
    tensor_states,
)
from ray_distill.students.process_group import Ranks

#: Attributes that make up the state of a dynamic loss scale.
_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def zero_state_access(optimizer: Any, ranks: Ranks) -> StateAccess:
    """Return the `StateAccess` of DeepSpeed's optimiser.

    The kinds are ZeRO 3, ZeRO 1 and 2, and whole on every rank (ZeRO 0).

    Raises:
        TrainingError: the optimiser is of another kind, so its state cannot be saved.
    """
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return Zero3Parts(optimizer, ranks)
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        return Zero12Parts(optimizer)
    if hasattr(optimizer, "fp32_groups"):  # half precision at ZeRO 0: a float32 copy of each parameter
        halves = chain.from_iterable(optimizer.fp16_groups)
        return WholeStateAccess(
            optimizer.optimizer, dict(zip(halves, chain.from_iterable(optimizer.fp32_groups), strict=True))
        )
    if isinstance(optimizer, torch.optim.Optimizer):
        return WholeStateAccess(optimizer)
    raise TrainingError(
        f"checkpoints of DeepSpeed's {type(optimizer).__name__} are not supported: zero_stage 0 in half precision "
        "creates it for a fused optimiser; use zero_stage 1, or leave the optimizer out of student.training.deepspeed"
    )


class _Partitioned:
    """Common base of partitioned `StateAccess`.

    The optimiser has flat tensors, each one rank's part of many parameters.
    """

    def __init__(self, optimizer: Any, flats: Sequence[Tensor]) -> None:
        self._zero, self._flats = optimizer, flats

    def states(self) -> tuple[str, ...]:
        """See `StateAccess`."""
        return tensor_states(self._zero.optimizer)

    def step(self) -> float:
        """See `StateAccess`."""
        return counted_steps(self._zero.optimizer)

    def prepare(self, states: Sequence[str], step: float) -> None:
        """See `StateAccess`.

        DeepSpeed itself creates states in the first step, and links them to parameters then.
        """
        make_states(self._zero.optimizer, self._flats, states, step)

    def release(self) -> None:
        """See `StateAccess`."""


class Zero12Parts(_Partitioned):
    """`StateAccess` at ZeRO 1 and 2: whole parameters, partitioned master weights and states."""

    def __init__(self, optimizer: Any) -> None:
        flats = getattr(optimizer, "single_partition_of_fp32_groups", None)
        super().__init__(optimizer, optimizer.fp32_groups_flat_partition if flats is None else flats)
        if all(flat in optimizer.optimizer.state for flat in self._flats):
            self._link()

    def read(self, parameter: Any, name: str) -> Tensor | None:
        """See `StateAccess`."""
        found: Tensor = parameter.get_full_hp_param(None if name == WEIGHT else name)
        return found

    def prepare(self, states: Sequence[str], step: float) -> None:
        """See `StateAccess`."""
        super().prepare(states, step)
        self._link()

    def write(self, parameter: Any, name: str, value: Tensor) -> None:
        """See `StateAccess`."""
        parameter.set_full_hp_param(value, None if name == WEIGHT else name)

    def finish(self) -> None:
        """See `StateAccess`."""
        self._zero.update_lp_params()

    def _link(self) -> None:
        """Link parameters to their states.

        DeepSpeed links them once, after the step of its first group: the parameters of the second group have no states
        at that time and would stay without a link.
        """
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()


class Zero3Parts(_Partitioned):
    """`StateAccess` at ZeRO 3, where parameters themselves are partitioned.

    Each is cut into equal pieces; the last one is padded.
    """

    def __init__(self, optimizer: Any, ranks: Ranks) -> None:
        super().__init__(optimizer, optimizer.fp32_partitioned_groups_flat)
        self._ranks = ranks

    def read(self, parameter: Any, name: str) -> Tensor | None:
        """See `StateAccess`."""
        found: Tensor = self._zero.get_full_hp_param(parameter, None if name == WEIGHT else name)
        return found

    def prepare(self, states: Sequence[str], step: float) -> None:
        """See `StateAccess`."""
        self.release()
        super().prepare(states, step)

    def release(self) -> None:
        """See `StateAccess`.

        Small parameters that every rank keeps whole are released; `finish` gathers them again.
        """
        self._zero.checkpoint_event_prologue()

    def write(self, parameter: Any, name: str, value: Tensor) -> None:
        """See `StateAccess`."""
        size = parameter.ds_tensor.numel()
        filled = functional.pad(value.flatten(), (0, size * self._ranks.world - value.numel()))
        own = filled[self._ranks.rank * size : (self._ranks.rank + 1) * size]
        self._zero.set_local_hp_param(own, parameter, None if name == WEIGHT else name)

    def finish(self) -> None:
        """See `StateAccess`."""
        for number in range(len(self._flats)):
            self._zero._reassign_or_swap_out_partitioned_parameters(number)
        self._zero.checkpoint_event_epilogue()


def base_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimiser of master weights inside DeepSpeed's optimiser.

    An optimiser that wraps no other is returned itself.
    """
    found: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return found


def loss_scale(optimizer: Any) -> dict[str, float]:
    """Return the state of a half-precision optimiser's loss scale; empty if it has none."""
    holder = _scaler(optimizer)
    return {} if holder is None else {name: getattr(holder, name) for name in _SCALE if hasattr(holder, name)}


def set_loss_scale(optimizer: Any, saved: dict[str, float]) -> None:
    """Restore the state returned by `loss_scale`.

    For an optimiser without a loss scale, nothing is done.
    """
    holder = _scaler(optimizer)
    if holder is None:
        return
    for name, value in saved.items():
        setattr(holder, name, value)


def _scaler(optimizer: Any) -> Any:
    found = getattr(optimizer, "loss_scaler", None)
    return getattr(optimizer, "loss_scale_config", None) if found is None else found
