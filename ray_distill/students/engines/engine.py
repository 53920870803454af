"""Define the protocol of engines, plain torch and DeepSpeed, and the optimiser they share."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn

from ray_distill.config import TrainingConfig
from ray_distill.errors import TrainingError
from ray_distill.losses.base import StudentOutput
from ray_distill.losses.fused import HeadRequest
from ray_distill.students.process_group import Ranks
from ray_distill.students.telemetry.step_timer import Stopwatch
from ray_distill.tasks.encoded import Batch


class Engine(Protocol):
    """Trains one bundle (`StudentModule`).

    Every method except plain torch's ``forward`` is collective: call it on every rank.
    """

    @property
    def device(self) -> torch.device:
        """The device on which the bundle computes."""

    def forward(self, inputs: Batch, request: HeadRequest | None = None) -> StudentOutput:
        """Run the bundle on a micro-batch; ``request`` is for bundles with a fused head."""

    def train(self, mode: bool) -> None:
        """Switch between training and evaluation (dropout, batch norm)."""

    def step(self, passes: Sequence[Callable[[], Tensor]], rate: float, watch: Stopwatch | None = None) -> None:
        """Take one optimiser step.

        Gradients are *summed* over the passes and over the ranks, then clipped.

        Args:
            passes: each runs a micro-batch and returns its share of the global loss; equally many on every rank.
            rate: learning rate of this step.
            watch: receives which part of the step runs.
        """

    def averaged(self) -> AbstractContextManager[None]:
        """Use the moving average as the weights inside the context, if there is one.

        On exit the weights are restored.
        """

    def weights(self) -> dict[str, Tensor]:
        """Return the student's whole state on the first rank's CPU; empty on other ranks.

        It does not include the projections.
        """

    def save(self, folder: Path) -> None:
        """Write bundle and optimiser into an existing local folder; each rank writes its own files."""

    def load(self, folder: Path) -> None:
        """Read the files of every rank's `save`, from one folder.

        They may come from any engine, at any number of ranks.
        """

    def close(self) -> None:
        """Release the engine's resources."""


def run_bundle(bundle: Callable[..., Any], inputs: Batch, request: HeadRequest | None) -> StudentOutput:
    """Call a bundle, wrapped or not, and return its output in the form that losses read."""
    logits_BV, hidden, fused, states = bundle(inputs) if request is None else bundle(inputs, request)
    return StudentOutput(logits_BV=logits_BV, hidden=hidden, fused=fused, states=states)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return trainable parameters in two groups: matrices with weight decay, vectors without.

    Vectors are biases, norms and all other parameters with fewer than two dimensions.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """Build the optimiser of every engine; each step sets its own learning rate."""
    return torch.optim.AdamW(parameter_groups(module, weight_decay), lr=0.0, betas=(0.9, 0.999), eps=1e-8, fused=True)


def training_device(training: TrainingConfig) -> torch.device:
    """Return the GPU assigned to this process, or the CPU.

    Raises:
        TrainingError: GPUs are configured and there is none.
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
        TrainingError: it is not a transformers model with activation checkpointing.
    """
    if not getattr(module, "supports_gradient_checkpointing", False):
        raise TrainingError(
            f"student.training.activation_checkpointing: {type(module).__name__} cannot recompute its "
            "activations; leave it off"
        )
    enable: Any = module.activation_checkpointing_enable
    enable(activation_checkpointing_kwargs={"use_reentrant": False})


def check_compiler(training: TrainingConfig) -> list[str]:
    """Return the errors in the compiler backend; empty if it is valid or not configured."""
    backend = training.compile
    if backend is None or backend in torch.compiler.list_backends(exclude_tags=()):
        return []
    known = ", ".join(torch.compiler.list_backends())
    return [f"student.training.compile: torch has no backend {backend!r}; it has {known}"]


def compile_module(module: nn.Module, backend: str) -> None:
    """Compile a module's forward pass with torch, in place; parameters keep their names.

    Batch sizes are symbolic, because they differ by step and each new size would be compiled again.
    """
    module.compile(backend=backend, dynamic=True)


def average_buffers(module: nn.Module, ranks: Ranks) -> None:
    """Average floating-point buffers over the ranks: running statistics of batch norm."""
    if ranks.world == 1:
        return
    with torch.no_grad():
        for buffer in module.buffers():
            if buffer.is_floating_point():
                distributed.all_reduce(buffer)
                buffer /= ranks.world
