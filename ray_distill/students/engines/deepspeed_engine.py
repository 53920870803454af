"""Train with DeepSpeed, ZeRO 0-3.

This is the only module that imports deepspeed, and it is itself imported only by name.

DeepSpeed averages gradients over ranks and accumulation steps. The losses of this package are shares of one global
mean, so both averages are undone: the one over steps by disabling the scaling, the one over ranks by a factor before
the backward pass.
"""

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ray_distill.config import TrainingConfig
from ray_distill.errors import TrainingError
from ray_distill.losses.base import StudentOutput
from ray_distill.losses.fused import HeadRequest
from ray_distill.models.core.skipped_imports import without
from ray_distill.students.engines.deepspeed_config import deepspeed_settings
from ray_distill.students.engines.ema import Average
from ray_distill.students.engines.engine import (
    average_buffers,
    build_optimizer,
    parameter_groups,
    run_bundle,
    training_device,
)
from ray_distill.students.engines.portable_state import load_atoms, save_atoms
from ray_distill.students.engines.zero_state import base_optimizer, loss_scale, set_loss_scale, zero_state_access
from ray_distill.students.process_group import Ranks
from ray_distill.students.telemetry.step_timer import Stopwatch
from ray_distill.tasks.encoded import Batch


class DeepSpeedEngine:
    """`Engine` over an initialised DeepSpeed engine."""

    def __init__(
        self, deepspeed: ModuleType, engine: Any, ranks: Ranks, *, own_schedule: bool, ema: float | None
    ) -> None:
        self._deepspeed = deepspeed
        self._engine = engine
        self._ranks = ranks
        self._own_schedule = own_schedule
        self._parts = partial(zero_state_access, engine.optimizer, ranks)
        self._average = None if ema is None else Average(ema, base_optimizer(engine.optimizer), self._parts)
        self._watch = Stopwatch()
        # DeepSpeed reduces gradients at the end of its own backward pass, by this method; see `step` and `close`.
        self._reduce = engine.allreduce_gradients
        engine.allreduce_gradients = self._timed_reduction

    @property
    def device(self) -> torch.device:
        """The device on which the bundle computes."""
        return torch.device(self._engine.device)

    def forward(self, inputs: Batch, request: HeadRequest | None = None) -> StudentOutput:
        """Run the bundle through DeepSpeed, which gathers the parameters it has partitioned."""
        return run_bundle(self._engine, inputs, request)

    def train(self, mode: bool) -> None:
        """Switch between training and evaluation.

        Before evaluation, running statistics are averaged over the ranks.
        """
        if not mode:
            average_buffers(self._engine.module, self._ranks)
        self._engine.train(mode)

    def step(self, passes: Sequence[Callable[[], Tensor]], rate: float, watch: Stopwatch | None = None) -> None:
        """Take one optimiser step on the summed gradients.

        The time of communication during a pass counts to that pass: at stages 2 and 3 all of the reduction except its
        last bucket, at 3 the gathering of parameters too. At 1 and above, the time of the optimiser includes gathering
        the parameters that each rank has updated.
        """
        self._watch = watch or Stopwatch()
        if self._own_schedule:
            for group in self._engine.optimizer.param_groups:
                group["lr"] = rate
        for number, run in enumerate(passes, start=1):
            self._engine.set_gradient_accumulation_boundary(number == len(passes))
            with self._watch.part("forward"):
                loss = run() * self._ranks.world
            with self._watch.part("backward"):
                self._engine.backward(loss, scale_wrt_gas=False)
        with self._watch.part("optimizer"):
            self._engine.step()
            if self._average is not None:
                self._average.update()

    def averaged(self) -> AbstractContextManager[None]:
        """See `Engine`."""
        return nullcontext() if self._average is None else self._average.used()

    def _timed_reduction(self, *arguments: Any, **named: Any) -> Any:
        with self._watch.part("communication"):
            return self._reduce(*arguments, **named)

    def weights(self) -> dict[str, Tensor]:
        """Return the student's state on the CPU, on the first rank; empty on the others.

        Partitioned parameters are gathered one by one.
        """
        average_buffers(self._engine.module, self._ranks)
        student: nn.Module = self._engine.module.get_submodule("student")
        found: dict[str, Tensor] = {}
        for name, value in student.state_dict(keep_vars=True).items():
            with self._deepspeed.zero.GatheredParameters([value], enabled=hasattr(value, "ds_id")):
                if self._ranks.first:
                    found[name] = value.detach().cpu().clone()
        return found

    def save(self, folder: Path) -> None:
        """Write this rank's share of the atoms; collective, because partitions are gathered."""
        average_buffers(self._engine.module, self._ranks)
        own: dict[str, Any] = {"loss_scale": loss_scale(self._engine.optimizer)}
        if not self._own_schedule:
            own["schedule"] = self._engine.lr_scheduler.state_dict()
        save_atoms(folder, self._engine.module, self._parts(), self._ranks, own=own)

    def load(self, folder: Path) -> None:
        """Read the atoms, written by any engine, at any stage and any number of ranks."""
        own = load_atoms(folder, self._engine.module, self._parts())
        set_loss_scale(self._engine.optimizer, own.get("loss_scale", {}))
        if not self._own_schedule and "schedule" in own:
            self._engine.lr_scheduler.load_state_dict(own["schedule"])

    def close(self) -> None:
        """Free DeepSpeed's buffers and hooks, and the hook of this class."""
        del self._engine.allreduce_gradients
        self._engine.destroy()


def start_deepspeed(module: nn.Module, training: TrainingConfig, ranks: Ranks, *, passes: int) -> DeepSpeedEngine:
    """Initialise DeepSpeed around a bundle; a single process becomes a group of one.

    Raises:
        TrainingError: DeepSpeed does not start; the message names the likely cause.
    """
    device = training_device(training)
    share = max(1, training.global_batch // ranks.world)
    settings = deepspeed_settings(training, micro_batch=min(training.micro_batch, share), passes=passes)
    deepspeed = _import_deepspeed(device)
    _ensure_group(device)
    own_optimizer = None if "optimizer" in settings else build_optimizer(module, training.weight_decay)
    try:
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        engine, _, _, _ = deepspeed.initialize(
            model=module,
            optimizer=own_optimizer,
            config=settings,
            model_parameters=parameter_groups(module, training.weight_decay),
        )
    except (RuntimeError, ValueError, AssertionError, OSError, ImportError) as error:
        # DeepSpeed raises any of these for settings and devices that it does not support.
        raise TrainingError(
            f"DeepSpeed did not start: {error}. If it compiles an op of its own, that needs a C++ compiler and ninja: "
            "`ray-distill doctor` reports what is missing; student.training.engine: torch needs neither"
        ) from error
    if own_optimizer is not None:
        _uncount_steps(own_optimizer)
    zero_state_access(
        engine.optimizer, ranks
    )  # raises before the first step if its state cannot be saved in a checkpoint
    return DeepSpeedEngine(deepspeed, engine, ranks, own_schedule="scheduler" not in settings, ema=training.ema)


def _uncount_steps(optimizer: torch.optim.Optimizer) -> None:
    """Set Adam's step count back to 0.

    In half precision at ZeRO 0 DeepSpeed steps once on zero gradients, to allocate the state; with that step
    counted, the bias correction makes the first real one a quarter too short.
    """
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].zero_()


def _import_deepspeed(device: torch.device) -> ModuleType:
    """Import DeepSpeed with the accelerator and the local rank set in the environment.

    Without them DeepSpeed guesses the accelerator and does not start.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    # Otherwise torch warns at a collective of every step: DeepSpeed calls a function that torch 2.13 has renamed.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # DeepSpeed's tuner of settings, which this package does not use, imports MLflow: 1.4 of its 1.9 CPU seconds a rank.
    with without("mlflow"):
        import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # This op is an all-reduce over shared memory, for ranks on one CPU. Gloo gives the same sums; without the op
    # nothing is compiled (94 s of CPU on the first run) and no compiler is needed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    module: ModuleType = deepspeed
    return module


def _ensure_group(device: torch.device) -> None:
    if not distributed.is_initialized():
        backend = "gloo" if device.type == "cpu" else "nccl"
        store = distributed.HashStore()  # type: ignore[attr-defined]  # public, but torch leaves it out of __all__
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
