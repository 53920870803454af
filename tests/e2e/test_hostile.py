"""A third of the hostile tries by turns: each is refused by name or changes nothing, and none ends in a traceback."""

import os
from pathlib import Path

import pytest

from tests.labs.drawn import COMMIT
from tests.labs.hostile.__main__ import carry_out_all, some
from tests.labs.hostile.ground import Ground, prepare
from tests.labs.hostile.tries import POINTS

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def ground(embedded_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Return the finished campaign that each try disturbs a copy of."""
    return prepare(tmp_path_factory.mktemp("hostile"))


def test_every_third_has_tries_of_every_point() -> None:
    """So that no commit leaves a promise untried."""
    everything = {one.point for one in some(None)}
    assert everything <= set(POINTS)
    for third in range(3):
        assert {one.point for one in some(third)} == everything


def test_nothing_is_promoted_lost_or_shown_that_should_not_be(ground: Ground, tmp_path: Path) -> None:
    """Which third is decided by the commit; `python -m tests.labs.hostile` runs all of them."""
    third = int(os.environ.get(COMMIT, "0"), 16) % 3
    outcomes = list(carry_out_all(some(third), ground, tmp_path))
    wrong = [f"{outcome.attempt.name}: {outcome.happened}" for outcome in outcomes if not outcome.right]
    assert not wrong, "\n".join(wrong)
