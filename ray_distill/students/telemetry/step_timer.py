"""Where the time of a step goes, what gets done in it, and the memory it took: numbers of a run that are measured.

They differ from run to run, so no test of curves compares them, and nothing that is trained depends on them.
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

#: Parts of a step; what belongs to none of them is ``other``.
PARTS = ("data", "forward", "backward", "optimizer", "communication", "other")
#: With more ranks than this only the greatest and the smallest peak are told.
RANKS_TOLD = 8
_GIB = 2**30
_MEASURED = ("seconds_", "peak_memory_gib_", "data_wait", "examples_per_second", "tokens_per_second", "mfu", "hfu")


class Clock(Protocol):
    """Marks moments, and tells the seconds between two of them once `settle` has been called on the last."""

    def mark(self) -> Any:
        """This moment."""

    def settle(self, mark: Any) -> None:
        """Wait until a mark has passed."""

    def seconds(self, first: Any, second: Any) -> float:
        """Seconds from one mark to a later one."""


class HostClock:
    """`Clock` of this process, for a CPU: what is called has been done when the call returns."""

    def mark(self) -> float:
        """See `Clock`."""
        return time.perf_counter()

    def settle(self, mark: float) -> None:
        """See `Clock`."""

    def seconds(self, first: float, second: float) -> float:
        """See `Clock`."""
        return second - first


class CudaClock:
    """`Clock` of a GPU's current stream, by events: none of them makes the host wait but the step's last.

    The stream is idle while the host fetches a batch, so the time between two events holds the host's part too.
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
    """Seconds by part of a step. A part inside another is taken out of it, so that the parts sum to the whole."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or HostClock()
        self._running = ["other"]
        self._laps: list[tuple[str, Any]] = []
        """The part that runs from a mark on, and the mark."""

    def start(self) -> None:
        """Begin a step, whatever has become of the one before."""
        self._running = ["other"]
        self._laps = [("other", self._clock.mark())]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block to a part."""
        assert name in PARTS, name
        self._running.append(name)
        self._laps.append((name, self._clock.mark()))
        try:
            yield
        finally:
            self._running.pop()
            self._laps.append((self._running[-1], self._clock.mark()))

    def stop(self) -> dict[str, float]:
        """End the step: seconds of each of `PARTS`."""
        end = self._clock.mark()
        self._clock.settle(end)
        found = dict.fromkeys(PARTS, 0.0)
        for (name, start), (_, after) in zip(self._laps, [*self._laps[1:], ("", end)], strict=True):
            found[name] += self._clock.seconds(start, after)
        self._laps = []
        return found


class StepMeter:
    """Measures the steps of one trial on one rank: `start`, the step's parts through ``watch``, `work`, `stop`.

    Args:
        world: ranks that share a step.
        peak: FLOPs a second of one device at the precision of training; None where that is not known, and then the
            model's FLOPs are not counted.
        recomputes: whether activations are computed twice, which the count would hold; see `stop`.
        compiled: whether the model is compiled.
        clock: of the device.
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
        """The meter for what a trial runs on."""
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
        """Around a step's passes: the FLOPs of the first step are counted, which slows it, if they are of use.

        A compiled model runs as it was written while it is counted: what torch would compile under the counter, it
        would skip, for ever.
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
        """What this rank did, to be summed over the ranks for `stop`: tokens, and FLOPs where they were counted."""
        return [float(sum(tokens_of(batch) for batch in inputs)), float(self._count.total if self._count else 0)]

    def stop(self, examples: int, tokens: float, flops: float) -> dict[str, float]:
        """End a step and give its metrics.

        ``mfu`` is the share of the devices' peak that the model's FLOPs took (Chowdhery et al., arXiv 2204.02311,
        appendix B). FLOPs an example, or a token where there are tokens, are those of the first step, so of its padding
        too. Where activations are recomputed the count holds them, and the number is called ``hfu``, as there.

        Args:
            examples: of all ranks.
            tokens: of all ranks; 0 where inputs are no tokens.
            flops: of all ranks; 0 where they were not counted.
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
    """Tokens that a model reads: of padded rows the real ones, of packed rows all, of pairs those of both sides."""
    masks = [inputs[name] for name in ("attention_mask", "decoder_attention_mask") if name in inputs]
    if masks:
        return int(sum(int(mask.sum()) for mask in masks))
    return inputs["input_ids"].numel() if "input_ids" in inputs else 0


def peak_memory(
    ranks: Ranks, device: torch.device, *, own: Callable[[torch.device], int] | None = None
) -> dict[str, float]:
    """The most memory each rank has held so far, in GiB; collective. With many ranks the extremes alone.

    On a GPU what torch has had allocated there; on a CPU the peak resident set of the process.
    """
    found = [size / _GIB for size in ranks.gather((own or _own_peak)(device))]
    if len(found) > RANKS_TOLD:
        return {"peak_memory_gib_max": max(found), "peak_memory_gib_min": min(found)}
    return {f"peak_memory_gib_rank_{rank}": size for rank, size in enumerate(found)}


def is_measured(name: str) -> bool:
    """Whether a step's metric is of time or memory: it then says nothing of what was learnt, and differs by run."""
    return name.startswith(_MEASURED)


def _own_peak(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
