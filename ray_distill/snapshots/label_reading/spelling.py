"""Unify spellings of a label: blanks, accents, ``1.0`` and ``1``, ``True`` and ``true``.

Parquet and JSON have numbers and truth values, CSV has texts; the same data must have the same classes in all of them.
"""

import re
import unicodedata
from collections.abc import Iterable

INTEGER = re.compile(r"0|-?[1-9]\d*")
_NUMBER = re.compile(r"(-?(?:0|[1-9]\d*))(?:\.(\d+))?")
_ROUNDED = re.compile(r"-?\d(\.\d+)?e\+\d+", re.IGNORECASE)
_TRUTHS = frozenset(("true", "false"))
#: Words for truth values; a column of them alone may have each value in one spelling only.
_TRUTH_WORDS = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "1"), "true"),
    **dict.fromkeys(("false", "f", "no", "n", "off", "0"), "false"),
}
#: Cyrillic and Greek letters that print like Latin ones.
_LOOK_ALIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf",
    "aeopcyxijsABEKMHOPCTYXIJSABEZHIKMNOPTYXo",
)

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
    values: among words, ``1.0`` is a name like any other. Accents are one character (Unicode's NFC).
    """
    stripped = {text: unicodedata.normalize("NFC", text.strip()) for text in texts}
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


def same_spelling(one: str, other: str) -> str:
    """Return how two names of hardly two classes differ, as a phrase; empty if they may be."""
    if _folded(one) == _folded(other):
        return "differ only by case, blanks or leading zeros"
    numbers = [_without_zeros(text) for text in (one, other)]
    if numbers[0] == numbers[1]:
        return "are one number in two spellings"
    if _printed(one) == _printed(other):
        return f"print alike, and differ in characters ({ascii(one)}, {ascii(other)})"
    return ""


def key(text: str) -> str:
    """Return what names that `same_spelling` does not distinguish have in common."""
    return _folded(_printed(_without_zeros(text)))


def truth_word(text: str) -> str | None:
    """Return ``true`` or ``false`` for a word that means it; else None."""
    return _TRUTH_WORDS.get(text.casefold())


def _folded(text: str) -> str:
    return str(int(text)) if text.isdecimal() else " ".join(text.split()).casefold()


def _printed(text: str) -> str:
    """Return a text in Latin letters where it prints like them, without invisible ones."""
    visible = "".join(_plain(letter) for letter in text if unicodedata.category(letter) != "Cf")
    return _folded(visible.translate(_LOOK_ALIKE))


def _plain(letter: str) -> str:
    """Return the usual characters of a form that differs in width alone, or of a ligature."""
    kind = unicodedata.decomposition(letter).partition(" ")[0]
    return unicodedata.normalize("NFKC", letter) if kind in ("<wide>", "<narrow>", "<compat>") else letter
