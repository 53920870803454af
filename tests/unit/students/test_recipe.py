"""Settings of a training that the rows and the student decide."""

import math

import pytest

from ray_distill.config import TrainingConfig
from ray_distill.students.recipe import chosen_rate, first_rates, next_rate, probe_steps, settled

#: Times as many steps as the run that tries a rate, in a long training.
LONG = 30.0


@pytest.mark.parametrize(
    ("rows", "batch"), [(0, 64), (20, 16), (1_000, 32), (1_920, 32), (10_000, 128), (60_000, 256), (10**8, 256)]
)
def test_a_batch_follows_from_the_rows(rows: int, batch: int) -> None:
    """The power of two next to the root of the rows, from 16 to 256; given ones stay."""
    assert settled(TrainingConfig(), rows, 100).global_batch == batch
    assert settled(TrainingConfig(global_batch=10), rows, 100).global_batch == 10


def test_a_batch_is_a_multiple_of_the_workers() -> None:
    """Of the least and of the most: neither leaves padding."""
    assert settled(TrainingConfig(workers=(2, 6)), 1_000, 100).global_batch == 36


@pytest.mark.parametrize(("rows", "validation", "every"), [(1_920, 160, 30), (1_920, 2_000, 60), (51_200, 10, 10)])
def test_validating_takes_a_small_share_of_the_time(rows: int, validation: int, every: int) -> None:
    """Six times the examples of a validation between two of them, a pass at most, a twentieth of one at least."""
    assert settled(TrainingConfig(), rows, validation).evaluate_every == every
    assert settled(TrainingConfig(evaluate_every=7), rows, validation).evaluate_every == 7


def test_rates_follow_from_size_and_start() -> None:
    """Larger students and those that start from trained weights have smaller rates."""
    small, large = first_rates(15_000, "config"), first_rates(85_000_000, "config")
    assert small == (3.3e-3, 1e-2, 3e-2) and large == (2e-4, 6e-4, 1.8e-3)
    assert first_rates(85_000_000, "teacher_layers")[1] == 3e-4
    assert first_rates(85_000_000, "checkpoint")[1] == 6e-5
    assert first_rates(85_000_000, "adapters")[1] == 6e-4


def test_rates_are_tried_until_the_choice_is_between_two() -> None:
    """Beyond the end that is best or would be chosen; five rates at most; smaller ones where all diverged."""
    assert next_rate({1e-3: 2.0, 3e-3: 1.0, 9e-3: 3.0}, LONG) is None
    assert next_rate({1e-3: 3.0, 3e-3: 2.0, 9e-3: 1.0}, LONG) == pytest.approx(2.7e-2)
    assert next_rate({8e-4: 2.03, 2.4e-3: 0.946, 7.2e-3: 0.916}, LONG) is None, (
        "the middle one is chosen, whatever follows"
    )
    assert next_rate({1e-3: 1.0, 3e-3: 2.0, 9e-3: math.inf}, LONG) == pytest.approx(3.3e-4)
    assert next_rate({1e-3: math.inf, 3e-3: math.inf, 9e-3: math.inf}, LONG) == pytest.approx(3.3e-4)
    assert next_rate(dict(zip(range(1, 6), (16.0, 8.0, 4.0, 2.0, 1.0), strict=True)), LONG) is None


def test_a_smaller_rate_is_preferred_where_it_is_as_good() -> None:
    """Within half of the best loss: short runs favour rates that are too large for long ones."""
    assert chosen_rate({1e-2: 0.121, 3e-2: 0.106, 9e-2: 0.092, 0.27: 0.129}, LONG) == 1e-2
    assert chosen_rate({1e-2: 0.2, 3e-2: 0.106, 9e-2: 0.08, 0.27: math.inf}, LONG) == 3e-2
    assert chosen_rate({2.3e-4: 2.593, 7e-4: 1.39, 2.1e-3: 0.823, 6.3e-3: 0.827}, LONG) == 2.1e-3


def test_a_training_hardly_longer_than_the_tried_ones_takes_the_best_rate() -> None:
    """A language model on 88 documents, whose losses differ by less than their floor: it gains 0.195 nats of KL."""
    scores = {2.3e-4: 6.455, 7e-4: 6.099, 2.1e-3: 6.170}
    assert chosen_rate(scores, 6.0) == 7e-4 and chosen_rate(scores, LONG) == 2.3e-4
    assert next_rate({8e-4: 2.03, 2.4e-3: 0.946, 7.2e-3: 0.916}, 6.0) == pytest.approx(2.2e-2)


def test_a_rate_is_tried_on_a_small_share_of_the_steps() -> None:
    """A pass, or a twentieth of a training of fewer passes; 150 steps of shorter ones, a sixth at most."""
    assert [probe_steps(steps, 1e9) for steps in (36_000, 900, 600, 90, 1)] == [1_800, 150, 100, 15, 1]
    assert [probe_steps(36_000, epoch) for epoch in (600, 10)] == [600, 150]
