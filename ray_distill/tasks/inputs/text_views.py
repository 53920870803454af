"""Make views of texts: words left out or replaced, one part kept, parts of two texts joined.

Word: characters between blanks; a single character where a script has no blanks (Chinese, Japanese, Thai, Lao, Khmer,
Burmese). Spellings, blanks and line breaks stay.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from ray_distill.snapshots.augment.kinds import Change, Kind, Neighbours, without_neighbours

_NO_BLANKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
#: A word, with the blanks behind it.
_WORD = re.compile(rf"(?:[{_NO_BLANKS}]|[^\s{_NO_BLANKS}]+)\s*")
#: Two letters between which a blank is needed, because they end and begin words of a script with blanks.
_NEEDS_BLANK = re.compile(rf"[^\s{_NO_BLANKS}]{{2}}")
#: Letters, and the signs and blanks around them.
_LETTERS = re.compile(r"(\W*)([^\W\d_]+)(\W*)")


def word_dropout(inputs: Sequence[bytes], strength: float, generator: np.random.Generator) -> bytes | None:
    """Leave each word out with the chance ``strength``; at least one goes, and one stays.

    Wei and Zou, 2019: EDA (random deletion).
    """
    words = _words(inputs[0])
    if len(words) < 2:
        return None
    kept = generator.random(len(words)) >= strength
    first, second = generator.choice(len(words), 2, replace=False)
    kept[first], kept[second] = False if kept.all() else kept[first], True if not kept.any() else kept[second]
    return _text([word for word, stays in zip(words, kept, strict=True) if stays])


def cut(inputs: Sequence[bytes], strength: float, generator: np.random.Generator) -> bytes | None:
    """Keep one contiguous part; up to the share ``strength`` of the words is left out."""
    words = _words(inputs[0])
    if len(words) < 2:
        return None
    kept = len(words) - _some(len(words), strength, generator, most=len(words) - 1)
    start = int(generator.integers(len(words) - kept + 1))
    return _text(words[start : start + kept])


def span_mix(inputs: Sequence[bytes], strength: float, generator: np.random.Generator) -> bytes | None:
    """Replace a span, up to the share ``strength`` of the words, by one of the partner.

    The partner's is as long, or all of it. Yoon et al., 2021: SSMix, here with spans drawn uniformly.
    """
    words, other = _words(inputs[0]), _words(inputs[1])
    if len(words) < 2 or not other:
        return None
    size = _some(len(words), strength, generator, most=len(words) - 1)
    start = int(generator.integers(len(words) - size + 1))
    begin = int(generator.integers(max(len(other) - size, 0) + 1))
    return _text([*words[:start], *other[begin : begin + size], *words[start + size :]])


def replace_words(neighbours: Neighbours) -> Change:
    """Make the change that replaces each word by a neighbour with the chance ``strength``.

    At least one is replaced. Signs around a word stay; words with other signs within (``don't``, ``a.org``, ``x86``)
    are not replaced. Jiao et al., 2020: TinyBERT, which takes neighbours from GloVe, or from a masked language model.
    """

    def change(inputs: Sequence[bytes], strength: float, generator: np.random.Generator) -> bytes | None:
        words, replaced = _words(inputs[0]), 0
        chances, choices = generator.random((2, len(words)))
        for at in np.argsort(chances).tolist():
            if replaced and chances[at] >= strength:
                break
            new = _replaced(words[at], neighbours, choices[at])
            words[at], replaced = new or words[at], replaced + (new is not None)
        return _text(words) if replaced else None

    return change


def _replaced(word: str, neighbours: Neighbours, choice: float) -> str | None:
    """Return a word with a neighbour of its letters, if they have one.

    Args:
        word: with signs and blanks.
        neighbours: of words.
        choice: in [0, 1): which neighbour, by their weights.
    """
    found = _LETTERS.fullmatch(word)
    if found is None or unicodedata.category((found[3] or " ")[0]).startswith("M"):  # an accent of the last letter
        return None
    near = neighbours(found[2])
    if not near:
        return None
    sums = np.cumsum([weight for _, weight in near])
    at = min(int(np.searchsorted(sums, choice, side="right")), len(near) - 1)
    return f"{found[1]}{near[at][0]}{found[3]}"


def _some(words: int, strength: float, generator: np.random.Generator, *, most: int) -> int:
    """Return a number of words, uniform from 1 to the share ``strength``."""
    return int(generator.integers(1, min(max(1, round(strength * words)), most) + 1))


def _words(data: bytes) -> list[str]:
    return _WORD.findall(data.decode("utf-8"))


def _text(words: Sequence[str]) -> bytes:
    """Join words; a blank is added behind one that was the last of its text."""
    parts = [
        f"{word} " if _NEEDS_BLANK.fullmatch(word[-1] + after[0]) else word
        for word, after in zip(words, words[1:], strict=False)
    ]
    return "".join([*parts, words[-1].rstrip()]).encode()


TEXT_VIEWS: Mapping[str, Kind] = {
    "word_dropout": Kind(change=word_dropout, strength=0.1),
    "cut": Kind(change=cut, strength=0.5),
    "span_mix": Kind(change=span_mix, strength=0.5, mixes=True),
    # It reads the teacher's embeddings; and a neighbour may mean the opposite: bad is one of good.
    "neighbours": Kind(
        change=without_neighbours, of_neighbours=replace_words, strength=0.2, automatic=False, keeps_label=False
    ),
}
