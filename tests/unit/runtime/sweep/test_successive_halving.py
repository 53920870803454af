"""The rule that stops hopeless trials."""

import math

import numpy as np
import pytest

from ray_distill.runtime.sweep.successive_halving import Rungs


def _alone(rungs: Rungs, trial: str, epoch: float, value: float) -> bool:
    (found,) = rungs.report(trial, epoch, value)
    return found.goes_on


def test_the_first_at_a_rung_goes_on_and_later_ones_must_be_among_the_best() -> None:
    """A third of 1, 2, 3 is one, of 4 two: what the paper's stopping rule keeps, rounded up."""
    rungs = Rungs([1], keep=1 / 3)
    assert _alone(rungs, "a", 1, 5.0)
    assert not _alone(rungs, "b", 1, 6.0)
    assert _alone(rungs, "c", 1, 4.0)
    assert _alone(rungs, "d", 1, 4.5), "the second of four"
    assert not _alone(rungs, "e", 1, 4.7), "the third of five"


def test_a_judgement_says_what_it_was_made_of() -> None:
    """Place and number of competitors are for the reason that a person reads."""
    rungs = Rungs([2], keep=0.5)
    rungs.report("a", 2, 1.0)
    (found,) = rungs.report("b", 2.3, 3.0)
    assert (found.rung, found.value, found.place, found.of, found.goes_on) == (2, 3.0, 2, 2, False)


def test_before_a_rung_nobody_is_judged_and_at_each_only_once() -> None:
    """A trial that was let pass is not asked again until the next rung."""
    rungs = Rungs([1, 3], keep=0.5)
    assert rungs.report("a", 0.99, 9.0) == []
    assert _alone(rungs, "a", 1.2, 9.0)
    assert rungs.report("a", 2.0, 1.0) == []
    assert _alone(rungs, "a", 3.0, 1.0)


def test_a_trial_that_passes_several_rungs_between_two_looks_is_judged_at_each_up_to_the_first_it_fails() -> None:
    """Rungs closer together than looks at the validation split."""
    rungs = Rungs([1, 2, 3], keep=0.5)
    rungs.report("a", 1, 5.0)
    rungs.report("a", 2, 2.0)
    found = rungs.report("b", 3.5, 3.0)
    assert [(one.rung, one.goes_on) for one in found] == [(1, True), (2, False)]
    assert [one.rung for one in rungs.report("c", 3.5, 1.0)] == [1, 2, 3]


def test_equal_trials_share_a_place() -> None:
    """Two trials alike: neither is stopped for the other."""
    rungs = Rungs([1], keep=0.5)
    assert all(_alone(rungs, name, 1, 2.0) for name in "abcd")


def test_what_was_known_before_counts_and_rungs_that_are_gone_do_not() -> None:
    """A command that goes on compares with the trials of the one before."""
    rungs = Rungs([1, 2], keep=0.5)
    rungs.restore("a", {1: 1.0, 1.5: 0.5})
    assert not _alone(rungs, "b", 1, 2.0)
    assert rungs.report("a", 1, 9.0) == []


@pytest.mark.parametrize("keep", [0.25, 1 / 3, 0.5, 0.9])
def test_the_best_is_never_stopped_and_the_share_goes_on(keep: float) -> None:
    """60 trials in 300 random orders: the n-th to come has any place with equal chance, so ⌈keep·n⌉/n of such pass."""
    passed = []
    for seed in range(300):
        rungs = Rungs([1], keep=keep)
        values = np.random.default_rng(seed).permutation(60)
        through = [int(value) for value in values if _alone(rungs, str(value), 1, float(value))]
        assert 0 in through
        passed.append(len(through))
    expected = sum(math.ceil(keep * n - 1e-9) / n for n in range(1, 61))
    assert np.mean(passed) == pytest.approx(expected, abs=4 * np.std(passed) / math.sqrt(300))
