"""SIGKILL while Ray labels: the store ends as if nobody had been killed. See `tests.labs.label_kills`.

Six kills, or two where the victims are drawn from a commit (`tests.labs.drawn`).
"""

import os

import pytest

from tests.labs import drawn
from tests.labs import label_kills as kill_lab

pytestmark = pytest.mark.crash

ALL = [("driver", 0), ("driver", 1), ("actor", 0), ("writer", 0), ("writer", 1), ("node", 0)]
SCENARIOS = [(victim, 0) for victim in drawn.victims(*drawn.LABELLING)] if drawn.COMMIT in os.environ else ALL


@pytest.fixture(scope="module")
def opened():
    with kill_lab.open_lab() as found:
        assert found.units >= 200
        yield found


@pytest.mark.parametrize(("victim", "number"), SCENARIOS)
def test_what_a_kill_leaves_is_brought_to_the_same_end(opened, victim, number):
    """Equal bytes, each row once, a clean audit, and nothing left to do for a teacher that would throw."""
    outcome = opened.scenario(victim, 0, number)
    assert outcome.ok, outcome
    assert 0 < outcome.moments[0] < opened.units
    assert victim != "driver" or 0 < outcome.resumed <= opened.units
