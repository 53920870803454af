"""What trains a bundle: one small protocol over plain torch and DeepSpeed, with one optimiser for both."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn

from ray_distill.config import TrainingConfig
from ray_distill.errors import TrainingError
from ray_distill.losses.base import StudentOutput
from ray_distill.losses.fused import Asked
from ray_distill.students.process_group import Ranks
from ray_distill.students.telemetry.step_timer import Stopwatch
from ray_distill.tasks.encoded import Batch


class Engine(Protocol):
    """Trains one bundle. Every method but ``forward`` in plain torch is collective: call it on every rank."""

    @property
    def device(self) -> torch.device:
        """Where the bundle computes."""

    def forward(self, inputs: Batch, asked: Asked | None = None) -> StudentOutput:
        """Run the bundle on a micro-batch; ``asked`` is for bundles with a fused head."""

    def train(self, mode: bool) -> None:
        """Switch between training and evaluation (dropout, batch norm)."""

    def step(self, passes: Sequence[Callable[[], Tensor]], rate: float, watch: Stopwatch | None = None) -> None:
        """One optimiser step: gradients are *summed* over the passes and over the ranks, then clipped.

        Args:
            passes: each runs a micro-batch and returns its share of the global loss; as many on every rank.
            rate: learning rate of this step.
            watch: told which part of the step runs.
        """

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the weights are their moving average, where one is kept; afterwards they are what they were."""

    def weights(self) -> dict[str, Tensor]:
        """The student's whole state on the CPU (without projections) on the first rank; empty on the others."""

    def save(self, folder: Path) -> None:
        """Write bundle and optimiser into an existing local folder; each rank writes its own files."""

    def load(self, folder: Path) -> None:
        """Read what every rank's `save` wrote, put together in one folder; by any engine, at any number of ranks."""

    def close(self) -> None:
        """Release what the engine holds."""


def run_bundle(bundle: Callable[..., Any], inputs: Batch, asked: Asked | None) -> StudentOutput:
    """Call a bundle, wrapped or not; its answer as the losses see it."""
    logits_BV, hidden, fused, states = bundle(inputs) if asked is None else bundle(inputs, asked)
    return StudentOutput(logits_BV=logits_BV, hidden=hidden, fused=fused, states=states)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay; biases, norms and other vectors do not."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """The optimiser of every engine; each step sets its own learning rate."""
    return torch.optim.AdamW(parameter_groups(module, weight_decay), lr=0.0, betas=(0.9, 0.999), eps=1e-8)


def training_device(training: TrainingConfig) -> torch.device:
    """The GPU this process was given, or the CPU.

    Raises:
        TrainingError: GPUs are asked for and there is none.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if training.gpus > 0:
        raise TrainingError(
            f"student.training.gpus is {training.gpus:g} but torch sees no GPU on this worker; set it to 0, or "
            "install a CUDA build of torch and start the worker on a GPU node"
        )
    return torch.device("cpu")


def checkpoint_activations(module: nn.Module) -> None:
    """Let a model recompute its activations in the backward pass.

    Raises:
        TrainingError: it is no transformers model that can.
    """
    if not getattr(module, "supports_gradient_checkpointing", False):
        raise TrainingError(
            f"student.training.activation_checkpointing: {type(module).__name__} cannot recompute its "
            "activations; leave it off"
        )
    enable: Any = module.activation_checkpointing_enable
    enable(activation_checkpointing_kwargs={"use_reentrant": False})


def check_compiler(training: TrainingConfig) -> list[str]:
    """What is wrong with the backend that is to compile the student, if one is."""
    backend = training.compile
    if backend is None or backend in torch.compiler.list_backends(exclude_tags=()):
        return []
    known = ", ".join(torch.compiler.list_backends())
    return [f"student.training.compile: torch has no backend {backend!r}; it has {known}"]


def compile_module(module: nn.Module, backend: str) -> None:
    """Let torch compile a module's forward pass where it stands; parameters keep their names.

    Sizes of batches are symbols: each step has others, and would be compiled anew.
    """
    module.compile(backend=backend, dynamic=True)


def average_buffers(module: nn.Module, ranks: Ranks) -> None:
    """Make floating buffers (running statistics of batch norm) equal on all ranks: their mean."""
    if ranks.world == 1:
        return
    with torch.no_grad():
        for buffer in module.buffers():
            if buffer.is_floating_point():
                distributed.all_reduce(buffer)
                buffer /= ranks.world
