"""Compute the difference that a number of rows can establish, and the rows it needs.

A row is the sampling unit (a document of language models), as everywhere in evaluation. The mean of a paired difference
over ``n`` rows has the standard error ``s/√n``, where ``s`` is the standard deviation of the difference of one row. A
two-sided interval of 95 % excludes zero with a probability of 80 % where the difference is

    (z₀.₉₇₅ + z₀.₈) · s / √n  =  2.80 · s / √n

(Cohen, Statistical Power Analysis, 2nd ed., chapter 2; for paired proportions Connor, Biometrics 43, 1987: there ``s²``
is the share of rows on which exactly one model is right, less the squared difference). Solved for ``n`` it is the
number of rows that a difference needs.
"""

import math

from ray_distill.artifacts import Estimate
from ray_distill.evaluation.measures.intervals import Z95
from ray_distill.tasks.answers.family import Answers
from ray_distill.tasks.metrics import Metric
from ray_distill.text import number

#: Quantile of the normal distribution at the power: the probability that a difference of this size is established.
Z80 = 0.8416212335729143
POWER = 0.8
#: Numbers of rows above which only "more than" is reported.
MOST_ROWS = 10_000_000


def detectable(deviation: float, rows: int) -> float:
    """Return the least difference that so many rows establish with a probability of 80 %.

    Args:
        deviation: standard deviation of the difference of one row.
        rows: number of rows; at least 1.
    """
    return (Z95 + Z80) * deviation / math.sqrt(rows)


def rows_needed(deviation: float, difference: float) -> float:
    """Return the number of rows that establish a difference with a probability of 80 %.

    It is infinite where the difference is 0. Arguments as `detectable`.
    """
    if difference == 0 or math.isnan(deviation):
        return math.inf
    return math.ceil(((Z95 + Z80) * deviation / difference) ** 2)


def deviation_of(half_width: float, rows: int) -> float:
    """Return the standard deviation of one row, from half the width of a 95 % interval."""
    return half_width * math.sqrt(rows) / Z95


def deviation_of_difference(difference: Estimate) -> float:
    """Return the standard deviation of a row's difference; NaN without an interval."""
    return deviation_of(difference.width / 2, difference.n)


def rows_in_words(rows: float, unit: str) -> str:
    """Return a number of rows, rounded up to two digits, such as ``about 1,900 labelled rows``."""
    if rows > MOST_ROWS:
        return f"more than {MOST_ROWS:,} {unit}"
    step = 10 ** max(0, len(str(int(rows))) - 2)
    return f"about {math.ceil(rows / step) * step:,} {unit}"


def established(difference: Estimate, answers: Answers) -> str:
    """Return what the measured rows establish about the student's loss against its teacher.

    Args:
        difference: the paired difference of the headline metric, student minus teacher, with its interval.
        answers: the family, whose headline metric it is.
    """
    metric, rows = answers.metrics[answers.headline], _test_rows(answers)
    deviation = deviation_of_difference(difference)
    size, least = in_units(abs(difference.value), metric), in_units(detectable(deviation, difference.n), metric)
    begin = f"{difference.n:,} {rows}: a {_direction(difference.value, metric)} of {size} against the teacher"
    if difference.low > 0 or difference.high < 0:
        return f"{begin} is established. This many rows establish {least} with a probability of {POWER:.0%}."
    needed = rows_in_words(rows_needed(deviation, difference.value), rows)
    if difference.value == 0:
        return f"{begin} cannot be distinguished from differences of less than {least}."
    return f"{begin} cannot be distinguished from none; {needed} would establish it, this many {least}."


def establishable(rows: int, answers: Answers, *, allowed: float | None = None) -> str:
    """Return what a planned number of labelled test rows can establish.

    Args:
        rows: labelled rows of the test split (documents of language models).
        answers: the family; its ``spread`` is assumed for the difference of one row.
        allowed: the loss of the headline metric that the gate allows, if it follows from the configuration.
    """
    metric, unit = answers.metrics[answers.headline], _test_rows(answers)
    if rows < 1:
        return f"no {unit}: nothing about the student's {metric.in_text} can be established, so no student is promoted"
    least = detectable(answers.spread, rows)
    found = f"{rows:,} {unit} can establish a difference of {in_units(least, metric)} from the teacher"
    if allowed:
        needed, size = rows_needed(answers.spread, allowed), in_units(allowed, metric)
        found += f", and the gate allows a loss of {size}"
        if least > allowed:
            found += f": {rows_in_words(needed, unit)} would establish that"
    return f"{found} (if the difference of one row has the standard deviation {answers.spread:g}; power {POWER:.0%})"


def in_units(size: float, metric: Metric) -> str:
    """Return the size of a difference: ``2.9 points of accuracy``, ``0.0123 of NLL``."""
    if metric.high == 1.0:
        return f"{number(100 * size, 1)} points of {metric.in_text}"
    return f"{number(size, 4)} of {metric.in_text}"


def _direction(value: float, metric: Metric) -> str:
    return "gain" if (value > 0) == metric.higher_is_better else "loss"


def _test_rows(answers: Answers) -> str:
    """Return ``labelled test rows`` for ``labelled rows``."""
    *before, noun = answers.rows.split()
    return " ".join([*before, "test", noun])
