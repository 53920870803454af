"""Compute learning rates and loss weights as pure functions of the step."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from ray_distill.config import Schedule

Shape = Literal["constant", "linear", "cosine"]

T = TypeVar("T")

#: Step (from 0) to value.
Curve = Callable[[int], float]


def rate_factor(step: int, *, steps: int, warmup: float, shape: Shape) -> float:
    """Return `rate_after` a warm-up of that share of the steps."""
    return rate_after(round(warmup * steps), step, steps=steps, shape=shape)


def rate_after(rising: int, step: int, *, steps: int, shape: Shape) -> float:
    """Return the factor of the learning rate at a step.

    The factor rises linearly over ``rising`` steps, then stays (``constant``) or falls towards 0 at the end
    (``linear``, ``cosine``).
    """
    if step < rising:
        return (step + 1) / (rising + 1)
    return _fall(1.0, 0.0, (step - rising) / max(1, steps - rising), shape)


def weight_curve(weight: float | Schedule, steps: int) -> Curve:
    """Return the weight of a loss as a function of the step, over ``steps`` steps.

    It is constant, a curve between two values, or has stages.
    """
    if isinstance(weight, float | int):
        return lambda step: float(weight)
    if weight.step is not None:
        stages = stage_starts(weight.step, steps)
        return lambda step: stage_at(stages, step)
    shape: Shape = "linear" if weight.linear is not None else "cosine"
    start, end = weight.linear or weight.cosine or (1.0, 1.0)
    return lambda step: _fall(start, end, step / max(1, steps - 1), shape)


def stage_starts(stages: Sequence[tuple[float, T]], steps: int) -> tuple[tuple[int, T], ...]:
    """Return the first step and the value of each stage, over ``steps`` steps.

    The stages are given as ``[share of training, value]`` pairs.
    """
    return tuple((round(share * steps), value) for share, value in stages)


def stage_at(starts: Sequence[tuple[int, T]], step: int) -> T:
    """Return the value of the last stage that has begun at a step.

    The first stage begins at step 0.
    """
    return next(value for start, value in reversed(starts) if start <= step)


def _fall(start: float, end: float, done: float, shape: Shape) -> float:
    """Return the value on the curve from ``start`` at ``done`` = 0 to ``end`` at ``done`` = 1."""
    if shape == "constant":
        return start
    share = done if shape == "linear" else (1 - math.cos(math.pi * done)) / 2
    return start + (end - start) * share
