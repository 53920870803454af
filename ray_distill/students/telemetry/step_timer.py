"""Measure the time, throughput and memory of steps.

Measured metrics differ between runs, so no test of curves compares them, and no trained weight depends on them.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, Self

import torch

from ray_distill.config import TrainingConfig
from ray_distill.students.process_group import Ranks
from ray_distill.students.telemetry.flops import FlopCount, peak_flops
from ray_distill.tasks.encoded import Batch

#: Parts of a step; time outside all other parts is ``other``.
PARTS = ("data", "forward", "backward", "optimizer", "communication", "other")
#: With more ranks than this, only the greatest and the smallest peak are reported.
MAX_RANKS_REPORTED = 8
_GIB = 2**30
_MEASURED = ("seconds_", "peak_memory_gib_", "data_wait", "examples_per_second", "tokens_per_second", "mfu", "hfu")


class Clock(Protocol):
    """Records marks in time and measures the seconds between them.

    Call `settle` on the later mark before `seconds`.
    """

    def mark(self) -> Any:
        """Record the current time as a mark."""

    def settle(self, mark: Any) -> None:
        """Wait until a mark has passed."""

    def seconds(self, first: Any, second: Any) -> float:
        """Return the seconds from one mark to a later one."""


class HostClock:
    """`Clock` of this process, for a CPU, where work is complete when its call returns."""

    def mark(self) -> float:
        """See `Clock`."""
        return time.perf_counter()

    def settle(self, mark: float) -> None:
        """See `Clock`."""

    def seconds(self, first: float, second: float) -> float:
        """See `Clock`."""
        return second - first


class CudaClock:
    """`Clock` of a GPU's current stream, by events.

    The host waits only for the last event of a step.

    The stream is idle while the host fetches a batch, so the time between two events includes the host's part.
    """

    def mark(self) -> torch.cuda.Event:
        """See `Clock`."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def settle(self, mark: torch.cuda.Event) -> None:
        """See `Clock`."""
        mark.synchronize()

    def seconds(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        """See `Clock`."""
        return float(first.elapsed_time(second)) / 1e3


class Stopwatch:
    """Measures the seconds of each part of a step.

    The time of a nested part is subtracted from the part around it, so that the parts sum to the whole step.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or HostClock()
        self._running = ["other"]
        self._laps: list[tuple[str, Any]] = []
        """The part that runs from a mark on, and the mark."""

    def start(self) -> None:
        """Begin a step, even if the previous step was not stopped."""
        self._running = ["other"]
        self._laps = [("other", self._clock.mark())]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of the context to a part."""
        assert name in PARTS, name
        self._running.append(name)
        self._laps.append((name, self._clock.mark()))
        try:
            yield
        finally:
            self._running.pop()
            self._laps.append((self._running[-1], self._clock.mark()))

    def stop(self) -> dict[str, float]:
        """End the step and return the seconds of each of `PARTS`."""
        end = self._clock.mark()
        self._clock.settle(end)
        found = dict.fromkeys(PARTS, 0.0)
        for (name, start), (_, after) in zip(self._laps, [*self._laps[1:], ("", end)], strict=True):
            found[name] += self._clock.seconds(start, after)
        self._laps = []
        return found


class StepMeter:
    """Measures the steps of one trial on one rank.

    Call `start`, measure the step's parts through ``watch``, and call `work` and `stop`.

    Args:
        world: number of ranks that share a step.
        peak: peak FLOPs a second of one device at the training precision; None = unknown, and the model's FLOPs are not
            counted.
        recomputes: whether activations are computed twice, which the count includes; see `stop`.
        compiled: whether the model is compiled.
        clock: clock of the device.
    """

    def __init__(
        self,
        *,
        world: int = 1,
        peak: float | None = None,
        recomputes: bool = False,
        compiled: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.watch = Stopwatch(clock)
        self._capacity = None if peak is None else peak * world
        self._compiled = compiled
        self._count: FlopCount | None = None
        self._per_unit: float | None = None
        self._utilisation = "hfu" if recomputes else "mfu"

    @classmethod
    def of(cls, device: torch.device, training: TrainingConfig, ranks: Ranks) -> Self:
        """Return the meter for a device and training settings."""
        if device.type != "cuda":
            return cls(world=ranks.world)
        peak = peak_flops(
            torch.cuda.get_device_name(device),
            training.precision,
            tf32=torch.get_float32_matmul_precision() != "highest",
        )
        return cls(
            world=ranks.world,
            peak=peak,
            recomputes=training.activation_checkpointing,
            compiled=training.compile is not None,
            clock=CudaClock(),
        )

    def start(self) -> Stopwatch:
        """Begin a step."""
        self._count = None
        self.watch.start()
        return self.watch

    def counted(self) -> AbstractContextManager[object]:
        """Count the FLOPs of the first step's passes inside the context, if the peak is known.

        Counting makes the first step slower. While FLOPs are counted, a compiled model runs uncompiled: torch would
        permanently skip code that it first compiles under the counter.
        """
        if self._capacity is None or self._per_unit is not None:
            return nullcontext()
        self._count = FlopCount()
        stack = ExitStack()
        if self._compiled:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(self._count)
        return stack

    def work(self, inputs: Sequence[Batch]) -> list[float]:
        """Return this rank's tokens, and FLOPs if counted, to be summed over the ranks for `stop`."""
        return [float(sum(tokens_of(batch) for batch in inputs)), float(self._count.total if self._count else 0)]

    def stop(self, examples: int, tokens: float, flops: float) -> dict[str, float]:
        """End a step and return its metrics.

        ``mfu`` is the ratio of the model's FLOPs to the devices' peak (Chowdhery et al., arXiv 2204.02311, appendix B).
        FLOPs an example, or a token if there are tokens, are those of the first step, including its padding. If
        activations are recomputed, the count includes this, and the metric is called ``hfu``, as in that paper.

        Args:
            examples: number of examples on all ranks.
            tokens: number of tokens on all ranks; 0 if inputs have no tokens.
            flops: number of FLOPs on all ranks; 0 if they were not counted.
        """
        seconds = self.watch.stop()
        whole = sum(seconds.values())
        units = tokens or examples
        found = {
            "examples_per_second": examples / whole,
            "seconds_step": whole,
            "data_wait": seconds["data"] / whole,
            **{f"seconds_{name}": value for name, value in seconds.items()},
        }
        if tokens:
            found["tokens_per_second"] = tokens / whole
        if flops and self._per_unit is None:
            self._per_unit = flops / units
        elif self._per_unit is not None and self._capacity is not None:
            found[self._utilisation] = self._per_unit * units / whole / self._capacity
        return found


def tokens_of(inputs: Batch) -> int:
    """Return the tokens that a model reads.

    Padding does not count, packed rows count whole, and pairs count on both sides.
    """
    masks = [inputs[name] for name in ("attention_mask", "decoder_attention_mask") if name in inputs]
    if masks:
        return int(sum(int(mask.sum()) for mask in masks))
    return inputs["input_ids"].numel() if "input_ids" in inputs else 0


def peak_memory(
    ranks: Ranks, device: torch.device, *, own: Callable[[torch.device], int] | None = None
) -> dict[str, float]:
    """Return the peak memory of each rank so far, in GiB; collective.

    With more than `MAX_RANKS_REPORTED` ranks, only the extremes are returned. On a GPU this is the memory allocated by
    torch; on a CPU it is the peak resident set of the process.
    """
    found = [size / _GIB for size in ranks.gather((own or _own_peak)(device))]
    if len(found) > MAX_RANKS_REPORTED:
        return {"peak_memory_gib_max": max(found), "peak_memory_gib_min": min(found)}
    return {f"peak_memory_gib_rank_{rank}": size for rank, size in enumerate(found)}


def is_measured(name: str) -> bool:
    """Return whether a metric measures time or memory.

    Such metrics differ between runs and do not depend on what was learnt.
    """
    return name.startswith(_MEASURED)


def _own_peak(device: torch.device) -> int:
    """Return the peak memory of this process on a device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
