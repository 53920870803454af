"""The learning rate by step, and the end of a run that trains until it has stopped improving."""

from itertools import pairwise

import pytest

from ray_distill.config import BudgetConfig, TrainingConfig
from ray_distill.students.loop.pace import Pace, Progress, pace_of


def open_pace(**budget: object) -> Pace:
    """Batches of 10 of 100 rows: 10 steps a pass; validated every 5 steps."""
    return pace_of(TrainingConfig(global_batch=10, evaluate_every=5, budget=BudgetConfig(**budget)), 100)


def ended(pace: Pace, losses: list[float]) -> Progress:
    """Return the progress of a run whose validations every 5 steps give these losses."""
    progress = Progress()
    for number, loss in enumerate(losses, start=1):
        progress = pace.after(progress, 5 * number, loss)
    return progress


def test_a_run_of_epochs_has_the_configured_shape() -> None:
    """Three passes of ten steps, the rate rising over a tenth of them and falling to 0."""
    pace = pace_of(TrainingConfig(global_batch=10, epochs=3, warmup=0.1, schedule="linear"), 100)
    assert pace.steps == pace.end(Progress()) == pace.least == 30
    assert [pace.factor(step, Progress()) for step in (0, 3, 30)] == [0.25, 1.0, 0.0]
    assert pace.after(Progress(), 5, 1.0) == Progress()


#: Losses that fall until step 40 and stay: the last half of 110 steps is hardly better than the quarter before it.
FLAT = [8 / min(number, 8) for number in range(1, 30)]


def test_the_rate_falls_when_the_loss_has_stopped_improving() -> None:
    """The fall takes a quarter of the steps before it, and nothing is decided during it."""
    pace = open_pace(passes=(2, 60))
    progress = ended(pace, FLAT)
    assert progress.decay_from == 110 and pace.end(progress) == 138
    factors = [pace.factor(step, progress) for step in range(138)]
    assert set(factors[pace.warmup : 110]) == {1.0}
    assert all(0 < later < before for before, later in pairwise(factors[109:]))
    assert pace.after(progress, 115, 0.1) == progress


def test_one_lucky_loss_does_not_end_a_run() -> None:
    """Losses that swing by half and fall by a third in each doubling; one is a tenth of those around it."""
    swinging = [(1.5 if number % 2 else 1.0) * number**-0.6 for number in range(1, 100)]
    swinging[10] /= 10
    assert ended(open_pace(passes=(2, 60)), swinging).decay_from is None


def test_a_gain_that_is_too_small_is_none() -> None:
    """Losses that fall by a tenth, or by a hundredth, in each doubling of the steps."""
    pace = open_pace(passes=(2, 60))
    assert ended(pace, [number**-0.15 for number in range(1, 100)]).decay_from is None
    assert ended(pace, [number**-0.015 for number in range(1, 100)]).decay_from is not None


def test_the_least_passes_are_trained_whatever_the_losses() -> None:
    """A loss that only rises: the rate falls after the least passes, not before."""
    assert ended(open_pace(passes=(12, 60)), [1.0 + number for number in range(40)]).decay_from == 120


def test_a_run_ends_at_the_most_steps() -> None:
    """A loss that always halves: the rate falls from four fifths of the most steps, and the last step has some left."""
    pace = open_pace(passes=(2, 10))
    progress = ended(pace, [0.5**number for number in range(20)])
    assert (pace.steps, pace.end(progress), pace.falls_from(progress)) == (100, 100, 80)
    assert pace.factor(79, progress) == 1.0 and 0 < pace.factor(99, progress) < 0.05


@pytest.mark.parametrize(("rows", "most"), [(100, 60), (100_000, 10), (10**6, 3)])
def test_the_most_passes_follow_from_the_examples(rows: int, most: float) -> None:
    """A million examples at most, sixty passes at most, and three at least."""
    assert BudgetConfig().bounds(rows) == (3, most)


def test_other_arms_have_the_steps_of_the_first() -> None:
    """The same warm-up, the same fall, and no end of their own."""
    pace = open_pace(passes=(2, 60))
    progress = ended(pace, FLAT)
    steps = pace.end(progress)
    other = pace.cut(steps, progress.decay_from)
    assert [other.factor(step, Progress()) for step in range(steps)] == [
        pace.factor(step, progress) for step in range(steps)
    ]
    late = other.after(Progress(), 60, 1.0)
    assert late.decay_from is None and other.end(late) == steps


def test_at_the_full_rate_the_median_of_the_last_losses_counts() -> None:
    """A lucky loss is no better than those around it; in the fall, and of a run of epochs, each loss counts itself."""
    pace = open_pace(passes=(2, 10))
    progress = ended(pace, [1.0, 0.9, 0.8, 0.1, 0.7])
    assert pace.level(progress, 25, 0.7) == 0.8
    assert pace.level(Progress(steps=(5,), losses=(1.0,), decay_from=50), 55, 0.3) == 0.3
    assert pace.level(progress, 81, 0.3) == 0.3, "beyond the latest step at the full rate"
    assert pace_of(TrainingConfig(global_batch=10, epochs=3), 100).level(Progress(), 5, 0.2) == 0.2


def test_a_short_run_rises_and_falls_too() -> None:
    """A run that tries a rate: ten steps of which the last fifth falls."""
    pace = open_pace(passes=(2, 60)).cut(10)
    factors = [pace.factor(step, Progress()) for step in range(10)]
    assert factors[7] == 1.0 and 0 < factors[9] < factors[8] < 1 and factors[0] < 1
