"""Train with plain torch.

Tests compare the DeepSpeed engine with this one.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from ray_distill.config import TrainingConfig
from ray_distill.errors import ConfigError
from ray_distill.losses.base import StudentOutput
from ray_distill.losses.fused import HeadRequest
from ray_distill.students.engines.ema import Average
from ray_distill.students.engines.engine import average_buffers, build_optimizer, run_bundle, training_device
from ray_distill.students.engines.portable_state import WholeStateAccess, load_atoms, save_atoms
from ray_distill.students.process_group import Ranks
from ray_distill.students.telemetry.step_timer import Stopwatch
from ray_distill.tasks.encoded import Batch


class TorchEngine:
    """`Engine` in one process or several: whole replicas, gradients summed by all-reduce.

    Raises:
        ConfigError: the precision is fp16, which needs DeepSpeed's loss scaling.
    """

    def __init__(self, module: nn.Module, training: TrainingConfig, ranks: Ranks) -> None:
        if training.precision == "fp16":
            raise ConfigError(
                "student.training: engine torch supports precision fp32 and bf16, found fp16; use bf16, or deepspeed"
            )
        self._ranks = ranks
        self._clip = training.clip
        self._bf16 = training.precision == "bf16"
        self._device = training_device(training)
        self._module = module.to(self._device)
        self._optimizer = build_optimizer(module, training.weight_decay)
        self._parts = partial(WholeStateAccess, self._optimizer)
        self._average = None if training.ema is None else Average(training.ema, self._optimizer, self._parts)

    @property
    def device(self) -> torch.device:
        """The device on which the bundle computes."""
        return self._device

    def forward(self, inputs: Batch, request: HeadRequest | None = None) -> StudentOutput:
        """Run the bundle, under autocast if the precision is bf16."""
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            return run_bundle(self._module, inputs, request)

    def train(self, mode: bool) -> None:
        """Switch between training and evaluation.

        Before evaluation, running statistics are averaged over the ranks.
        """
        if not mode:
            average_buffers(self._module, self._ranks)
        self._module.train(mode)

    def step(self, passes: Sequence[Callable[[], Tensor]], rate: float, watch: Stopwatch | None = None) -> None:
        """Take one AdamW step on the summed gradients."""
        watch = watch or Stopwatch()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        for run in passes:
            with watch.part("forward"):
                loss = run()
            with watch.part("backward"):
                torch.autograd.backward(loss)
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        with watch.part("communication"):
            self._sum_gradients(parameters)
        with watch.part("optimizer"):
            nn.utils.clip_grad_norm_(parameters, self._clip)
            self._optimizer.step()
            if self._average is not None:
                self._average.update()

    def averaged(self) -> AbstractContextManager[None]:
        """See `Engine`."""
        return nullcontext() if self._average is None else self._average.used()

    def weights(self) -> dict[str, Tensor]:
        """Return the student's state on the CPU, on the first rank; empty on the others."""
        average_buffers(self._module, self._ranks)
        if not self._ranks.first:
            return {}
        student: nn.Module = self._module.get_submodule("student")
        return {name: value.detach().cpu().clone() for name, value in student.state_dict().items()}

    def save(self, folder: Path) -> None:
        """Write this rank's share of the atoms; all ranks have the same state."""
        average_buffers(self._module, self._ranks)
        save_atoms(folder, self._module, self._parts(), self._ranks, own={})

    def load(self, folder: Path) -> None:
        """Read the atoms, written by any engine."""
        load_atoms(folder, self._module, self._parts())

    def close(self) -> None:
        """Do nothing, because there is nothing to release."""

    def _sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over the ranks.

        An unused parameter gets zeros, so that all ranks reduce the same parameters.
        """
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if self._ranks.world > 1:
                distributed.all_reduce(parameter.grad)
