"""Corruptions of texts that leave their meaning to a reader: typos, letter case, lost words."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from ray_distill.tasks.inputs.corruptions import Change, corrupt_column
from ray_distill.tasks.inputs.modality import Corruption

#: One value a severity: share of letters mistyped; of words in capitals; of words lost.
_TYPO_RATES = {1: 0.03, 2: 0.07, 3: 0.12}
_CASE_RATES = {1: 0.2, 2: 0.5, 3: 1.0}
_DROP_RATES = {1: 0.1, 2: 0.2, 3: 0.3}

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    """Return the keys beside and above or below each letter of a QWERTY keyboard.

    Those above and below are half a key to the right.
    """
    place = {key: (line, column + line / 2) for line, keys in enumerate(_ROWS) for column, key in enumerate(keys)}
    return {
        key: "".join(other for other, at in place.items() if other != key and _distance(at, here) <= 1.5)
        for key, here in place.items()
    }


def _distance(a: tuple[int, float], b: tuple[int, float]) -> float:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


_NEIGHBOURS = _neighbours()


def typos(text: str, severity: int, generator: np.random.Generator) -> str:
    """Mistype letters: the key beside, two letters swapped, one doubled, one left out."""
    out: list[str] = []
    position = 0
    chance = generator.random(len(text))
    while position < len(text):
        letter = text[position]
        if chance[position] >= _TYPO_RATES[severity] or not letter.isalpha():
            out.append(letter)
            position += 1
            continue
        typed, used = _mistype(text, position, generator)
        out.append(typed)
        position += used
    return "".join(out)


def case(text: str, severity: int, generator: np.random.Generator) -> str:
    """Put words in capitals; at the highest severity all of them."""
    words = text.split(" ")
    loud = generator.random(len(words)) < _CASE_RATES[severity]
    return " ".join(word.upper() if up else word for word, up in zip(words, loud, strict=True))


def dropout(text: str, severity: int, generator: np.random.Generator) -> str:
    """Leave out words; at least one stays."""
    words = text.split()
    if not words:
        return text
    keep = generator.random(len(words)) >= _DROP_RATES[severity]
    keep[generator.integers(len(words))] |= not keep.any()
    return " ".join(word for word, kept in zip(words, keep, strict=True) if kept)


def _mistype(text: str, position: int, generator: np.random.Generator) -> tuple[str, int]:
    """Return what is typed instead of the letter, and how many letters of the text it uses."""
    letter = text[position]
    near = _NEIGHBOURS.get(letter.lower(), letter)
    kind = int(generator.integers(4))
    if kind == 0:
        wrong = near[int(generator.integers(len(near)))]
        return (wrong.upper() if letter.isupper() else wrong), 1
    if kind == 1 and text[position + 1 : position + 2].isalpha():
        return text[position + 1] + letter, 2
    if kind == 2 and text[position - 1 : position].isalpha():
        return "", 1
    return letter + letter, 1


def on_rows(change: Change) -> Corruption:
    """Lift a change of texts to rows with a column ``text``."""

    def corrupt(rows: pa.Table, severity: int, generator: np.random.Generator) -> pa.Table:
        return corrupt_column(rows, "text", change, severity=severity, generator=generator)

    return corrupt


#: (text, severity 1..3, generator) -> corrupted text, by name.
TEXT_CHANGES: Mapping[str, Change] = {"typos": typos, "case": case, "dropout": dropout}

TEXT_CORRUPTIONS: Mapping[str, Corruption] = {name: on_rows(change) for name, change in TEXT_CHANGES.items()}
