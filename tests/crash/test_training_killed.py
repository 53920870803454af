"""SIGKILL while Ray trains, and a node that is taken away: the student ends as if nothing had been. More of it:
`tests.labs.training_kills`. All victims, or two that are drawn from a commit (`tests.labs.drawn`)."""

import pytest

from tests.labs import drawn
from tests.labs import training_kills as train_kill_lab

pytestmark = pytest.mark.crash


@pytest.fixture(scope="module")
def opened():
    with train_kill_lab.open_lab() as found:
        yield found


@pytest.mark.parametrize("number", [0])
@pytest.mark.parametrize("victim", drawn.victims(*drawn.TRAINING))
def test_what_a_kill_leaves_is_trained_to_the_same_end(opened, victim, number):
    """The undisturbed run's curve and weights, and every example once an epoch."""
    outcome = opened.scenario(victim, 0, number)
    assert outcome.ok, outcome
    assert all(0 < moment < opened.steps for moment in outcome.moments)
