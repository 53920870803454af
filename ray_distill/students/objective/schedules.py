"""Numbers that change over training, as pure functions of the step: learning rate and loss weights."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from ray_distill.config import Schedule

Shape = Literal["constant", "linear", "cosine"]

T = TypeVar("T")

#: Step (from 0) to value.
Curve = Callable[[int], float]


def rate_factor(step: int, *, steps: int, warmup: float, shape: Shape) -> float:
    """Factor of the learning rate at a step: it rises linearly over ``warmup`` (share of the steps), then stays
    (``constant``) or falls towards 0 at the end (``linear``, ``cosine``)."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return _fall(1.0, 0.0, (step - rising) / max(1, steps - rising), shape)


def weight_curve(weight: float | Schedule, steps: int) -> Curve:
    """The weight of a loss over ``steps`` steps: from the first of its two values to the second, or in jumps."""
    if isinstance(weight, float | int):
        return lambda step: float(weight)
    if weight.step is not None:
        stages = stage_starts(weight.step, steps)
        return lambda step: stage_at(stages, step)
    shape: Shape = "linear" if weight.linear is not None else "cosine"
    start, end = weight.linear or weight.cosine or (1.0, 1.0)
    return lambda step: _fall(start, end, step / max(1, steps - 1), shape)


def stage_starts(stages: Sequence[tuple[float, T]], steps: int) -> tuple[tuple[int, T], ...]:
    """First step and value of each stage of ``[share of training, value]`` pairs, over ``steps`` steps."""
    return tuple((round(share * steps), value) for share, value in stages)


def stage_at(starts: Sequence[tuple[int, T]], step: int) -> T:
    """The value of the last stage that has begun at a step; the first begins with 0."""
    return next(value for start, value in reversed(starts) if start <= step)


def _fall(start: float, end: float, done: float, shape: Shape) -> float:
    """From ``start`` at ``done`` = 0 to ``end`` at 1 along the shape."""
    if shape == "constant":
        return start
    share = done if shape == "linear" else (1 - math.cos(math.pi * done)) / 2
    return start + (end - start) * share
