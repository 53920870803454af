"""Numbers, sizes and durations as people read them."""

import pytest

from ray_distill import text
from ray_distill.artifacts import Estimate


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_durations_are_said_as_a_person_says_them(seconds: float, said: str) -> None:
    """Rounding never gives 60 of a unit."""
    assert text.duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "shown"), [(0.91234567, "0.9123"), (9.0, "9.0000"), (10.0, "10"), (1234.56, "1,234.6"), (-20.0, "-20")]
)
def test_a_number_in_a_sentence_has_the_digits_that_matter(value: float, shown: str) -> None:
    """Whole from 10 on, four decimals below 100, one above."""
    assert text.short_number(value) == shown


def test_a_number_on_a_page_has_a_minus_sign_and_no_nan() -> None:
    """Typographic minus, infinity, and words for what was not measured."""
    assert text.number(-1234.5678, 2) == "−1,234.57"
    assert text.number(0.5, 1, signed=True) == "+0.5"
    assert text.number(float("inf"), 3) == "∞"
    assert text.number(float("nan"), 3) == "not measured"


def test_an_estimate_shows_its_interval_where_it_has_one() -> None:
    """Value and interval; the value alone if it is exact; that there is none if it is not known."""
    assert text.estimate(Estimate(value=0.5, low=0.4, high=0.6, n=9)) == "0.5000 [0.4000, 0.6000]"
    assert text.estimate(Estimate(value=0.5, low=0.5, high=0.5, n=9)) == "0.5000"
    assert text.estimate(Estimate(value=0.5, low=float("nan"), high=0.6, n=9)) == "0.5000 (no interval)"


@pytest.mark.parametrize(
    ("count", "shown"), [(999, "1.0 kB"), (999_999, "1,000.0 kB"), (2_500_000, "2.5 MB"), (3_210_000_000, "3.2 GB")]
)
def test_bytes_have_the_unit_that_suits_them(count: int, shown: str) -> None:
    """Decimal units, one decimal."""
    assert text.byte_size(count) == shown


@pytest.mark.parametrize(("value", "shown"), [(3, "3"), (2000.0, "2,000"), (0.00123, "0.00123"), (1234.5, "1,234")])
def test_a_tick_has_three_digits(value: float, shown: str) -> None:
    """Whole where it is large."""
    assert text.tick_label(value) == shown


def test_arms_have_one_order_one_name_and_one_colour() -> None:
    """Unknown arms come last, under their own name."""
    assert text.ordered_arms(["x", "student", "teacher"]) == ["teacher", "student", "x"]
    assert text.arm_name("student") == "Student" and text.arm_name("x") == "x"
    assert text.arm_colour("student") != text.arm_colour("x") == text.arm_colour("y")
