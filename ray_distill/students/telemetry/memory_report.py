"""Explain why a rank ran out of memory.

The report has the bytes of its tensors by class, and a setting estimated to fit.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]
import torch
from torch import nn

from ray_distill.config import TrainingConfig
from ray_distill.errors import TrainingError
from ray_distill.storage.memory import memory_limit

log = logging.getLogger(__name__)

GIB = 2**30
#: Share of a device that a suggested setting may use by the estimate, which does not include fragmentation.
USABLE = 0.9
#: Share of the activations' bytes that remains with recomputation: the inputs of the layers, and one layer at a time.
RECOMPUTED = 0.3
_UNITS = {"B": 1, "bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": GIB, "TiB": 2**40}
#: CPU: "[enforce fail at alloc_cpu.cpp:…] … you tried to allocate 4096 bytes"; CUDA: "Tried to allocate 2.00 GiB".
_FAILED_ALLOCATION = re.compile(r"tried to allocate ([\d.]+) ?(bytes|B|KiB|MiB|GiB|TiB)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers of elements of a bundle's whole parameters."""

    all: int
    trained: int

    @classmethod
    def of(cls, module: nn.Module) -> "Sizes":
        """Count a module's parameters, each once."""
        parameters = list(module.parameters())
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        return cls(all=sum(parameter.numel() for parameter in parameters), trained=trained)


def resident_bytes(sizes: Sizes, training: TrainingConfig, world: int) -> dict[str, float]:
    """Return the bytes that are always allocated on one rank's device with AdamW, by class.

    Plain torch stores weights, gradients and two moments in float32. DeepSpeed stores weights and gradients in the
    training precision, a float32 master copy and two moments, partitioned over the ranks by its stage (Rajbhandari et
    al., arXiv 1910.02054, §3).
    """
    if training.engine == "torch":
        moments = 8.0 * sizes.trained
        return {"parameters": 4.0 * sizes.all, "gradients": 4.0 * sizes.trained, "optimiser states": moments}
    width, stage = 4 if training.precision == "fp32" else 2, training.zero_stage
    masters = 0 if stage == 0 and training.precision == "fp32" else 4
    states = (masters + 8.0) * sizes.trained / (world if stage >= 1 else 1)
    return {
        "parameters": 0.0 if training.offload == "all" else width * sizes.all / (world if stage == 3 else 1),
        "gradients": width * sizes.trained / (world if stage >= 2 else 1),
        "optimiser states": 0.0 if training.offload != "none" else states,
    }


def suggestion(
    sizes: Sizes, training: TrainingConfig, world: int, *, activations: float, limit: float, least: int = 1
) -> str | None:
    """Return the smallest change of settings estimated to fit.

    The result is None if no change fits on these ranks.

    Args:
        sizes: sizes of the bundle.
        training: the configured settings.
        world: number of ranks.
        activations: bytes of everything else at the configured micro-batch; they shrink with it.
        limit: bytes of the device.
        least: least limit of rows, or tokens, that a forward pass needs (`Budget.least`).
    """
    for stage, offload in _steps(training):
        tried = training.model_copy(update={"zero_stage": stage, "offload": offload})
        room = USABLE * limit - sum(resident_bytes(sizes, tried, world).values())
        for recomputed in sorted({training.activation_checkpointing, True}):
            share = RECOMPUTED if recomputed and not training.activation_checkpointing else 1.0
            micro = min(_size(training), int(room / (activations * share) * _size(training)))
            if micro >= least:
                return _changes(training, micro=micro, recomputed=recomputed, stage=stage, offload=offload, least=least)
    return None


def _steps(training: TrainingConfig) -> list[tuple[int, str]]:
    """Return stages and offloads, from the configured to the most economical.

    Plain torch has one entry.
    """
    if training.engine == "torch":
        return [(training.zero_stage, training.offload)]
    ladder = [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (2, "optimizer"), (3, "optimizer"), (3, "all")]
    if training.compile is not None:
        ladder = [(stage, offload) for stage, offload in ladder if stage < 3]
    now = (int(training.zero_stage), str(training.offload))
    return ladder[ladder.index(now) :] if now in ladder else [now, ladder[-1]]


def _changes(training: TrainingConfig, *, micro: int, recomputed: bool, stage: int, offload: str, least: int) -> str:
    changes = []
    if micro < _size(training):
        changes.append(f"{_setting(training)}: {_rounded(training, micro, least)}")
    if recomputed and not training.activation_checkpointing:
        changes.append("activation_checkpointing: true")
    if stage != training.zero_stage:
        changes.append(f"zero_stage: {stage}")
    if offload != training.offload:
        changes.append(f"offload: {offload}")
    return ", ".join(changes) or f"{_setting(training)}: {_rounded(training, max(least, _size(training) // 2), least)}"


def _rounded(training: TrainingConfig, micro: int, least: int) -> int:
    """Round down to a power of two, of tokens or of whole groups of rows."""
    if training.micro_tokens:
        return max(least, 1 << (micro.bit_length() - 1))
    return least * (1 << ((micro // least).bit_length() - 1))


def _setting(training: TrainingConfig) -> str:
    """Return the setting that limits a forward pass."""
    return "micro_tokens" if training.micro_tokens else "micro_batch"


def _size(training: TrainingConfig) -> int:
    return training.micro_tokens or training.micro_batch


@contextmanager
def memory_explained(
    trial: str, sizes: Sizes, training: TrainingConfig, world: int, *, least: int = 1
) -> Iterator[None]:
    """Convert an out-of-memory error into one with the tensors' bytes and a setting that fits.

    The arguments are those of `suggestion`.

    Raises:
        TrainingError: the device, or the process, is out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            explain_memory(trial, sizes, training, world=world, text=str(error), least=least)
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports exhausted memory: on a GPU, in torch on a CPU, in Python."""
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "DefaultCPUAllocator" in text or "not enough memory" in text or "CUDA out of memory" in text
    )


def explain_memory(trial: str, sizes: Sizes, training: TrainingConfig, *, world: int, text: str, least: int) -> str:
    """Return one line with the bytes of tensors by class, and a setting that fits."""
    used, limit, device = _measured()
    classes = resident_bytes(sizes, training, world)
    activations = max(used + _failed_bytes(text) - sum(classes.values()), 0.01 * limit)
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in classes.items())
    found = suggestion(sizes, training, world, activations=activations, limit=limit, least=least)
    advice = (
        f"by this estimate it fits with student.training {{{found}}}"
        if found is not None
        else (
            f"no {_setting(training)}, stage or offload fits by this estimate: use a smaller student, a larger "
            "device, or more workers with zero_stage 3"
        )
    )
    return (
        f"{trial}: out of memory on {device} of {limit / GIB:.2f} GiB; estimated GiB on a rank: {parts}, "
        f"activations, logits and all else at least {activations / GIB:.2f} at "
        f"{_setting(training)} {_size(training)}; {advice}"
    )


def _failed_bytes(text: str) -> float:
    """Return the bytes of the failed allocation, from the message; 0 = not stated."""
    found = _FAILED_ALLOCATION.search(text)
    if found is None:
        return 0.0
    unit = next(size for name, size in _UNITS.items() if name.lower() == found[2].lower())
    return float(found[1]) * unit


def _measured() -> tuple[float, float, str]:
    """Return bytes in use, the limit in bytes, and the device.

    Without a GPU, they are those of this process.
    """
    if torch.cuda.is_available():
        _, total = torch.cuda.mem_get_info()
        return float(torch.cuda.max_memory_allocated()), float(total), f"cuda:{torch.cuda.current_device()}"
    process = psutil.Process()
    return float(process.memory_info().rss), float(memory_limit()), "the CPU"
