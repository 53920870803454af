"""Unify spellings of a label: blanks, ``1.0`` and ``1``, ``True`` and ``true``.

Parquet and JSON have numbers and truth values, CSV has texts; the same data must have the same classes in all of them.
"""

import re
from collections.abc import Iterable

INTEGER = re.compile(r"0|-?[1-9]\d*")
_NUMBER = re.compile(r"(-?(?:0|[1-9]\d*))(?:\.(\d+))?")
_ROUNDED = re.compile(r"-?\d(\.\d+)?e\+\d+", re.IGNORECASE)
_TRUTHS = frozenset(("true", "false"))

#: Texts that software writes for a missing value; none of them is a plausible class.
BLANKS = frozenset(("", "nan", "<na>", "null", "#n/a", "\\n"))
#: Texts that mean a missing value or a class, e.g. none of the classes, or Namibia.
DOUBTFUL = frozenset(("none", "na", "n/a", "nil"))


def is_integer(text: str) -> bool:
    """Return whether a text is an integer without leading zeros."""
    return INTEGER.fullmatch(text) is not None


def is_rounded(text: str) -> bool:
    """Return whether a text is a number without its last digits, as of ids stored as floats."""
    return _ROUNDED.fullmatch(text) is not None


def is_fraction(text: str) -> bool:
    """Return whether a text is a number that is not whole."""
    found = _NUMBER.fullmatch(text)
    return found is not None and bool((found[2] or "").strip("0"))


def respell(texts: Iterable[str]) -> dict[str, str]:
    """Return one spelling of each value of a column.

    Whole numbers lose ``.0`` and truth values become lower case, each only where the whole column consists of such
    values: among words, ``1.0`` is a name like any other.
    """
    stripped = {text: text.strip() for text in texts}
    values = [value for value in stripped.values() if value.casefold() not in BLANKS | DOUBTFUL]
    if values and all(_NUMBER.fullmatch(value) for value in values):
        return {text: _without_zeros(value) for text, value in stripped.items()}
    if values and all(value.casefold() in _TRUTHS for value in values):
        return {text: value.lower() for text, value in stripped.items()}
    return stripped


def _without_zeros(text: str) -> str:
    found = _NUMBER.fullmatch(text)
    whole = found is not None and not (found[2] or "").strip("0")
    return ("0" if found[1] == "-0" else found[1]) if found is not None and whole else text
