"""Measure size, latency and throughput of all models by the same code in the same minutes.

Models take turns, request by request and batch by batch, in an order that rotates: whatever else the machine
does, and whatever it warms up, hits all of them alike. Single requests of one model that vary among themselves show a
busy machine: they are measured again once, the steadier measurement counts, and one that still varies is marked.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ray_distill.artifacts import Efficiency, Estimate
from ray_distill.errors import EvaluationError

if TYPE_CHECKING:
    import torch

WARM_UP = 3
"""Untimed requests and batches of each model before the first timed one."""
UNSTEADY = 0.25
"""Spread of a model's latencies from which they are measured again: the machine does something else."""
LEAST_REQUESTS = 20
"""Requests below which the spread is not judged."""
BATCHES = 7
"""Timed batches a model; throughput is their median."""


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A model ready to be timed."""

    run: Callable[[npt.NDArray[np.int64]], object]
    """Answer the examples of the given indices as one batch: inputs encoded beforehand, collation included."""
    parameters: int
    bytes_on_disk: int
    device: str = "cpu"
    """``cuda…`` devices are synchronised around each timing."""


def measure_efficiency(
    runners: Mapping[str, Runner], *, examples: int, requests: int, batch: int
) -> dict[str, Efficiency]:
    """Time ``requests`` single examples and several batches of every model, in turns.

    Args:
        runners: by arm.
        examples: number of examples that the runners have; requests go round them.
        requests: timed single requests a model.
        batch: examples a batch.

    Returns:
        By arm: latency p50 and p95 in milliseconds, throughput in examples a second.

    Raises:
        EvaluationError: no examples.
    """
    if examples < 1:
        raise EvaluationError("latency cannot be measured without an example: the split is empty")
    single = [np.array([i % examples], dtype=np.int64) for i in range(requests)]
    batches = [np.arange(i * batch, (i + 1) * batch, dtype=np.int64) % examples for i in range(BATCHES)]
    seconds = _in_turns(runners, single)
    if requests >= LEAST_REQUESTS and _unsteady(seconds):
        again = _in_turns(runners, single)
        seconds = min(seconds, again, key=_worst_spread)
    batch_seconds = _in_turns(runners, batches)
    return {name: _efficiency(runner, seconds[name], batch_seconds[name], batch) for name, runner in runners.items()}


def further_rates(
    efficiency: Mapping[str, Efficiency], units: Mapping[str, float], examples: int
) -> dict[str, dict[str, Estimate]]:
    """Return throughput in other units than examples, by arm.

    Args:
        efficiency: measured, by arm.
        units: by name of the rate, units of an example in the mean.
        examples: number of examples that the mean is over.
    """
    rates = {
        arm: {name: cost.examples_per_second * mean for name, mean in units.items()} for arm, cost in efficiency.items()
    }
    return {
        arm: {name: Estimate(value=rate, low=rate, high=rate, n=examples) for name, rate in found.items()}
        for arm, found in rates.items()
    }


def bytes_of_folder(folder: Path) -> int:
    """Return the size of all files under a local folder, bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def count_parameters(module: "torch.nn.Module") -> int:
    """Number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _in_turns(runners: Mapping[str, Runner], inputs: list[npt.NDArray[np.int64]]) -> dict[str, list[float]]:
    """Return the seconds of every input by model.

    Each round runs all models, starting with another one.
    """
    names = list(runners)
    for name in names:
        for index in inputs[:WARM_UP]:
            _seconds(runners[name], index)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn, index in enumerate(inputs):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(_seconds(runners[name], index))
    return seconds


def _seconds(runner: Runner, index: npt.NDArray[np.int64]) -> float:
    _wait(runner.device)
    start = time.perf_counter()
    runner.run(index)
    _wait(runner.device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    """Wait for the device: CUDA answers before it has finished."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def latency_spread(seconds: Sequence[float]) -> float:
    """Return the distance between the quartiles of requests, as a share of their median."""
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    return float((high - low) / middle) if middle > 0 else 0.0


def is_unsteady(efficiency: Efficiency) -> bool:
    """Return whether latencies vary as they do on a busy machine."""
    return efficiency.latency_spread > UNSTEADY


def busy_note(measured: Iterable[Efficiency]) -> str:
    """Return a sentence if some of several models were timed on a busy machine, else nothing."""
    spreads = [one.latency_spread for one in measured if is_unsteady(one)]
    if not spreads:
        return ""
    return (
        f"Latencies were measured on a busy machine: repeated requests vary by up to {max(spreads):.0%} between their "
        f"quartiles (at most {UNSTEADY:.0%} on an idle one). Compare sizes, not speed."
    )


def _worst_spread(seconds: Mapping[str, list[float]]) -> float:
    return max(latency_spread(values) for values in seconds.values())


def _unsteady(seconds: Mapping[str, list[float]]) -> bool:
    return _worst_spread(seconds) > UNSTEADY


def _efficiency(runner: Runner, seconds: list[float], batch_seconds: list[float], batch: int) -> Efficiency:
    p50, p95 = np.quantile(seconds, (0.5, 0.95)) * 1e3
    return Efficiency(
        parameters=runner.parameters,
        bytes_on_disk=runner.bytes_on_disk,
        latency_ms_p50=float(p50),
        latency_ms_p95=float(p95),
        examples_per_second=float(batch / np.median(batch_seconds)),
        latency_spread=latency_spread(seconds),
    )
