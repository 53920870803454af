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
