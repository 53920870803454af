"""Learning rate and loss weights as functions of the step."""

import pytest

from ray_distill.config import Schedule
from ray_distill.students.objective.schedules import Shape, rate_factor, weight_curve


@pytest.mark.parametrize(("shape", "middle", "end"), [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)])
def test_rate_rises_then_falls(shape: Shape, middle: float, end: float) -> None:
    """It rises over the warm-up without starting at 0, is 1 after it, and falls along its shape."""
    rates = [rate_factor(step, steps=100, warmup=0.2, shape=shape) for step in range(101)]
    assert 0 < rates[0] < rates[10] < rates[19] < 1 == rates[20]
    assert rates[60] == pytest.approx(middle) and rates[100] == pytest.approx(end)


def test_without_warmup_the_first_step_has_the_full_rate() -> None:
    """Warm-up 0 means none."""
    assert rate_factor(0, steps=10, warmup=0.0, shape="cosine") == 1.0


def test_weights_follow_their_schedule() -> None:
    """A number stays; a pair is walked from its first to its second value over the steps."""
    assert weight_curve(0.3, 10)(7) == 0.3
    linear, cosine = weight_curve(Schedule(linear=(1.0, 0.0)), 11), weight_curve(Schedule(cosine=(1.0, 0.1)), 11)
    assert [linear(0), linear(5), linear(10)] == pytest.approx([1, 0.5, 0])
    assert [cosine(0), cosine(5), cosine(10)] == pytest.approx([1, 0.55, 0.1])


def test_weights_jump_at_shares_of_the_training() -> None:
    """From a share of the steps on, its value; to the end the last one."""
    curve = weight_curve(Schedule(step=((0, 1.0), (0.25, 0.5), (0.9, 0.0))), 20)
    assert [curve(step) for step in (0, 4, 5, 17, 18, 19)] == [1.0, 1.0, 0.5, 0.5, 0.0, 0.0]
