"""Numbers that change over training, as pure functions of the step: learning rate and loss weights."""

import math
from collections.abc import Callable
from typing import Literal

from ray_distill.config import Schedule

Shape = Literal["constant", "linear", "cosine"]

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
    """The weight of a loss over ``steps`` steps, from the first of its two values to the second."""
    if isinstance(weight, float | int):
        return lambda step: float(weight)
    if weight.constant is not None:
        constant = weight.constant
        return lambda step: constant
    shape: Shape = "linear" if weight.linear is not None else "cosine"
    start, end = weight.linear or weight.cosine or (1.0, 1.0)
    return lambda step: _fall(start, end, step / max(1, steps - 1), shape)


def _fall(start: float, end: float, done: float, shape: Shape) -> float:
    """From ``start`` at ``done`` = 0 to ``end`` at 1 along the shape."""
    if shape == "constant":
        return start
    share = done if shape == "linear" else (1 - math.cos(math.pi * done)) / 2
    return start + (end - start) * share
