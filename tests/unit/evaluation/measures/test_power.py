"""What a number of rows can establish: the formula against simulated campaigns, and the sentences."""

import math

import numpy as np
import pytest

from ray_distill.artifacts import Estimate
from ray_distill.evaluation.measures.intervals import paired_proportions
from ray_distill.evaluation.measures.power import (
    detectable,
    deviation_of_difference,
    establishable,
    established,
    rows_in_words,
    rows_needed,
)
from ray_distill.tasks.answers.classes import CLASSES
from ray_distill.tasks.answers.tokens import TOKENS


def share_established(rows: int, loss: float, discordance: float, times: int = 400) -> float:
    """Simulated: how often the paired interval of two models excludes 0, at this true loss."""
    generator, found = np.random.default_rng(rows), 0
    only_teacher, only_student = (discordance + loss) / 2, (discordance - loss) / 2
    for teacher, student, _ in generator.multinomial(rows, [only_teacher, only_student, 1 - discordance], size=times):
        teacher_N, student_N = np.ones(rows), np.ones(rows)
        student_N[:teacher] = 0
        teacher_N[teacher : teacher + student] = 0
        found += paired_proportions(student_N, teacher_N, np.ones(rows)).high < 0
    return found / times


@pytest.mark.parametrize(("loss", "discordance"), [(0.029, 0.2), (0.05, 0.1)])
def test_the_number_of_rows_has_its_power(loss: float, discordance: float) -> None:
    """With so many rows four simulated campaigns of five establish the loss; with a tenth of them few do."""
    deviation = math.sqrt(discordance - loss**2)
    rows = int(rows_needed(deviation, loss))
    assert share_established(rows, loss, discordance) == pytest.approx(0.8, abs=0.07)
    assert share_established(rows // 10, loss, discordance) < 0.3
    assert detectable(deviation, rows) == pytest.approx(loss, rel=0.01)


def test_the_deviation_of_a_row_is_that_of_the_paired_interval() -> None:
    """What a report measured is what its interval was made of."""
    generator = np.random.default_rng(0)
    first_N, second_N = ((generator.random(4000) < share).astype(float) for share in (0.9, 0.85))
    paired = paired_proportions(first_N, second_N, np.ones(4000))
    assert deviation_of_difference(paired) == pytest.approx((first_N - second_N).std(), rel=0.01)


def test_a_report_states_what_its_rows_establish() -> None:
    """211 rows cannot distinguish 2.9 points from none and 1,900 would; what is established is called so."""
    deviation = math.sqrt(0.2 - 0.029**2)
    half = 1.96 * deviation / math.sqrt(211)
    doubtful = Estimate(value=-0.029, low=-0.029 - half, high=-0.029 + half, n=211)
    assert established(doubtful, CLASSES) == (
        "211 labelled test rows: a loss of 2.9 points of accuracy against the teacher cannot be distinguished from "
        "none; about 1,900 labelled test rows would establish it, this many 8.6 points of accuracy."
    )
    sure = Estimate(value=0.05, low=0.04, high=0.06, n=500)
    assert established(sure, TOKENS).startswith(
        "500 test documents: a loss of 0.0500 of NLL against the teacher is est"
    )
    same = Estimate(value=0.0, low=-0.01, high=0.01, n=500)
    assert "cannot be distinguished from differences of less than 1.4 points" in established(same, CLASSES)


def test_a_plan_states_it_before_anything_is_spent() -> None:
    """From a number of rows alone: what they establish, and how many the gate's allowance needs."""
    text = establishable(50, CLASSES, allowed=0.03)
    assert text.startswith(
        "50 labelled test rows can establish a difference of 11.9 points of accuracy from the teacher"
    )
    assert "the gate allows a loss of 3.0 points of accuracy: about 790 labelled test rows would establish that" in text
    assert "standard deviation 0.3; power 80%" in text
    assert "would establish" not in establishable(5000, CLASSES, allowed=0.03)
    assert establishable(0, CLASSES).startswith("no labelled test rows: nothing about the student's accuracy")
    assert establishable(400, TOKENS).startswith("400 test documents can establish a difference of 0.0560 of NLL")


def test_rows_are_rounded_up_to_two_digits() -> None:
    """A forecast of rows is no exact number, and an impossible one is named as such."""
    assert [rows_in_words(rows, "rows") for rows in (7, 101, 1801, 2e7, math.inf)] == [
        "about 7 rows",
        "about 110 rows",
        "about 1,900 rows",
        "more than 10,000,000 rows",
        "more than 10,000,000 rows",
    ]
