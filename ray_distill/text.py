"""Format numbers, sizes, durations and names of arms, the same everywhere."""

import math
from collections.abc import Iterable
from difflib import get_close_matches

from ray_distill.artifacts import Estimate

#: Shown where there is no value.
NONE = "–"
#: Arms in the order of every table and figure.
ARM_NAMES = {
    "teacher": "Teacher",
    "student": "Student",
    "champion": "Champion",
    "baseline_hard_labels": "Baseline: true labels only",
    "baseline_teacher_hard_labels": "Baseline: teacher's hard labels",
    "ceiling_true_labels": "Ceiling: all true labels",
}
ARM_COLOURS = {
    "student": "#2f6fde",
    "teacher": "#8a929c",
    "baseline_hard_labels": "#d9822b",
    "baseline_teacher_hard_labels": "#b0569f",
    "ceiling_true_labels": "#2f9e6e",
    "champion": "#c9a227",
}
_OTHER_COLOUR = "#5b6b7b"


def ordered_arms(arms: Iterable[str]) -> list[str]:
    """Return arms in the order of tables and figures, unknown ones last."""
    found = set(arms)
    return [arm for arm in ARM_NAMES if arm in found] + sorted(found - set(ARM_NAMES))


def arm_name(arm: str) -> str:
    """Return an arm's name as tables and figures show it."""
    return ARM_NAMES.get(arm, arm)


def arm_colour(arm: str) -> str:
    """Return an arm's colour, the same in every figure."""
    return ARM_COLOURS.get(arm, _OTHER_COLOUR)


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that are similar to one, or contain it."""
    names, lower = list(dict.fromkeys(known)), name.lower()
    similar = get_close_matches(lower, [one.lower() for one in names], cutoff=0.6)
    found = [one for match in similar for one in names if one.lower() == match]
    sharing = [one for one in names if len(lower) > 1 and (lower in one.lower() or (one and one.lower() in lower))]
    return list(dict.fromkeys([*found, *sharing]))[:3]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean …?`` with the nearest known names, empty if none is near."""
    near = near_names(name, known)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """Return a number with so many decimals: ``−1,234.500``, ``∞``, ``not measured`` for NaN."""
    if math.isnan(value):
        return "not measured"
    return format(value, f"{'+' if signed else ''},.{decimals}f").replace("-", "−").replace("inf", "∞")


def short_number(value: float, *, signed: bool = False) -> str:
    """Return a number for a sentence: whole numbers from 10, one decimal from 100, else four."""
    digits = 0 if float(value).is_integer() and abs(value) >= 10 else 1 if abs(value) >= 100 else 4
    return format(value, f"{'+' if signed else ''},.{digits}f")


def tick_label(value: float) -> str:
    """Return a number for an axis: three digits below 1,000, else whole."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def estimate(found: Estimate, *, signed: bool = False) -> str:
    """Return a value and its interval for a sentence: ``0.9123 [0.9012, 0.9233]``."""
    value = short_number(found.value, signed=signed)
    if not has_interval(found):
        return f"{value} (no interval)"
    if found.low == found.high:
        return value
    return f"{value} [{short_number(found.low, signed=signed)}, {short_number(found.high, signed=signed)}]"


def has_interval(found: Estimate) -> bool:
    """Return whether both ends of the interval are known."""
    return not (math.isnan(found.low) or math.isnan(found.high))


def byte_size(count: int) -> str:
    """Return bytes in the unit that suits them: ``1.2 kB``, ``3.4 MB``, ``5.6 GB``."""
    if count < 1_000_000:
        return f"{count / 1e3:,.1f} kB"
    return f"{count / 1e6:,.1f} MB" if count < 1_000_000_000 else f"{count / 1e9:,.1f} GB"


def duration(seconds: float) -> str:
    """Return seconds in the units that suit them: ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
