"""Find the neighbours of a word: other words whose vectors in an embedding table are alike.

A word is a token of a tokenizer that begins a word and ends it: letters alone, at least `LETTERS` of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

#: Least letters of a word.
LETTERS = 3
#: Most neighbours of a word, and their least cosine. Of random pairs of MiniLM's 21,361 words one in a thousand has a
#: cosine above 0.30; the first neighbour of half of the words has at least 0.57, the eighth 0.34.
MOST, LEAST = 8, 0.4
#: Words whose neighbours are found together.
_BLOCK = 64
#: A text that words are put behind, so that they are tokenized as within a text.
_BEFORE = "a"

Vectors = npt.NDArray[np.float32]
#: Spells a word in lower case, as a title or in upper case.
Case = Callable[[str], str]
_CASES: tuple[Case, ...] = (str.lower, str.upper, str.capitalize)


def whole_words(tokenizer: Any) -> dict[int, str]:
    """Return the tokens of a transformers tokenizer that are words, by id.

    Special and added tokens are left out. The tokenizer itself decides: behind another word, a word is encoded as this
    one token. So its marks for beginnings of words, or for their continuations, need not be listed.
    """
    added = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ids = sorted(set(tokenizer.get_vocab().values()) - added)
    texts = [text.strip() for text in tokenizer.batch_decode([[index] for index in ids])]
    likely = [(index, text) for index, text in zip(ids, texts, strict=True) if len(text) >= LETTERS and text.isalpha()]
    before, *encoded = _encode(tokenizer, [_BEFORE, *(f"{_BEFORE} {text}" for _, text in likely)])
    return {index: text for (index, text), found in zip(likely, encoded, strict=True) if found == [*before, index]}


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return found


@dataclass(frozen=True, kw_only=True)
class _Words:
    """Words of one case with their vectors; neighbours are found when they are first needed."""

    words: tuple[str, ...]
    places: Mapping[str, int]
    unit_WD: Vectors
    """Centred, of length 1."""
    found: dict[int, list[list[tuple[str, float]]]] = field(default_factory=dict)
    """Neighbours and cosines of a block's words, by the number of the block."""
    lock: Lock = field(default_factory=Lock)

    def near(self, word: str) -> list[tuple[str, float]]:
        """Return the neighbours of a word with their cosines, the nearest first."""
        block, place = divmod(self.places[word], _BLOCK)
        with self.lock:
            if block not in self.found:
                self.found[block] = self._near(block * _BLOCK)
        return self.found[block][place]

    def _near(self, start: int) -> list[list[tuple[str, float]]]:
        own = self.unit_WD[start : start + _BLOCK]
        cosines_BW = own @ self.unit_WD.T
        cosines_BW[np.arange(len(own)), start + np.arange(len(own))] = -1.0
        most = min(MOST, len(self.words))
        near_BK = np.sort(np.argpartition(-cosines_BW, most - 1, axis=1)[:, :most], axis=1)
        values_BK = np.take_along_axis(cosines_BW, near_BK, axis=1)
        order_BK = np.argsort(-values_BK, axis=1, kind="stable")
        return [
            [(self.words[near[at]], float(values[at])) for at in order if values[at] >= LEAST]
            for near, values, order in zip(near_BK, values_BK, order_BK, strict=True)
        ]


class WordNeighbours:
    """The neighbours of words in an embedding table, by cosine.

    The mean of all vectors is subtracted first: vectors of many models have a large part in common, which makes all
    words alike (Mu and Viswanath, 2018: All-but-the-Top). Words have neighbours of their own case, so that a model with
    cases keeps names apart.

    Neighbours are found in blocks of words with consecutive ids, of which each is computed at most once: ``[64, W]``
    numbers at a time. A block does not depend on what was requested before, so neither do the neighbours of a word.
    """

    def __init__(self, words: Sequence[str], vectors_WD: Vectors):
        """Take distinct words and their vectors ``[W, D]``."""
        unit_WD = vectors_WD - vectors_WD.mean(0)
        unit_WD /= np.maximum(np.linalg.norm(unit_WD, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        cases = [case_of(word) for word in words]
        self._words: dict[Case, _Words] = {}
        for case in _CASES:
            rows = [row for row, own in enumerate(cases) if own is case]
            if rows:
                names = tuple(words[row] for row in rows)
                places = {name: place for place, name in enumerate(names)}
                self._words[case] = _Words(words=names, places=places, unit_WD=unit_WD[rows])

    def __call__(self, word: str) -> list[tuple[str, float]]:
        """Return words that may stand in the place of a word, with weights that sum to 1.

        They are in its case, and the weights are proportional to the cosines. A word that is no token in its own case
        is found in lower case. Others, and words of mixed case, have none.
        """
        case = case_of(word)
        if case is None:
            return []
        for spelling, own in ((word, case), (word.lower(), str.lower)):
            words = self._words.get(own)
            if words is not None and spelling in words.places:
                near = words.near(spelling)
                total = sum(cosine for _, cosine in near)
                return [(case(name), cosine / total) for name, cosine in near]
        return []


def case_of(word: str) -> Case | None:
    """Return the case of a word; None of a mixed one. Scripts without cases are in lower case."""
    return next((case for case in _CASES if case(word) == word), None)
