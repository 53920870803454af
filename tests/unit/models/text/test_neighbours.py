"""Neighbours of words in an embedding table: which tokens are words, which are alike, in which case."""

import numpy as np
import pytest

from ray_distill.models.text import neighbours
from ray_distill.models.text.neighbours import LEAST, MOST, WordNeighbours, case_of, whole_words
from tests.labs.tiny_tokenizers import SENTENCES, TOKENIZERS


def around(*angles: float) -> np.ndarray:
    """Return vectors of length 1 in two of four dimensions, and their opposites, so that their mean is 0."""
    found = np.stack([np.cos(angles), np.sin(angles), np.zeros(len(angles)), np.zeros(len(angles))], axis=1)
    return np.concatenate([found, -found]).astype(np.float32)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_words_are_tokens_that_begin_and_end_one(kind: str) -> None:
    """Whatever marks beginnings or continuations: behind another word it is this one token; pieces are not words."""
    tokenizer = TOKENIZERS[kind]()
    found = whole_words(tokenizer)
    assert {"parcel"} | ({"the", "not", "start"} if kind != "Unigram" else set()) <= set(found.values())
    written = {word.strip(",") for sentence in SENTENCES for word in sentence.split()}
    assert all(len(word) >= 3 and word.isalpha() for word in found.values())
    assert not {"unk", "UNK", "mask", "MASK", "pad"} & set(found.values())
    for index, word in found.items():
        assert tokenizer(f"where {word}", add_special_tokens=False)["input_ids"][-1] == index
        assert any(whole.startswith(word) for whole in written), word
    pieces = {token.removeprefix("##") for token in tokenizer.get_vocab() if token.startswith("##")}
    assert kind != "WordPiece" or not (pieces - written) & set(found.values())


def test_neighbours_are_the_most_alike_with_weights_by_cosine() -> None:
    """The nearest first, none below the least cosine, never the word itself."""
    words = ["one", "two", "three", "four", "minus", "plus", "less", "more"]
    found = WordNeighbours(words, around(0.0, 0.3, 0.9, 1.9))
    near = found("one")
    cosines = [np.cos(0.3), np.cos(0.9)]
    assert [word for word, _ in near] == ["two", "three"]
    assert [weight for _, weight in near] == pytest.approx(np.array(cosines) / sum(cosines), rel=1e-5)
    opposite = np.cos(np.pi - 1.9)  # of four's opposite to one
    assert 0 < opposite < LEAST < np.cos(1.9 - 0.9) and [word for word, _ in found("four")] == ["three"]
    assert found("unknown") == [] and sum(weight for _, weight in found("three")) == pytest.approx(1)


def test_the_part_that_all_vectors_have_in_common_is_left_out() -> None:
    """Else every word would be like every other one."""
    vectors = around(0.0, 0.3, 0.9, 1.9)
    words = ["one", "two", "three", "four", "minus", "plus", "less", "more"]
    plain, moved = WordNeighbours(words, vectors), WordNeighbours(words, vectors + np.float32(5))
    for word in words:
        assert [name for name, _ in plain(word)] == [name for name, _ in moved(word)]
        assert dict(plain(word)) == pytest.approx(dict(moved(word)), abs=1e-4)


def test_there_are_at_most_so_many_neighbours() -> None:
    """The nearest of them, whatever block they are in."""
    names = [f"{first}{second}x" for first in "abcdefghij" for second in "abcdefghij"]
    vectors = around(*(0.001 * at for at in range(50)))
    near = WordNeighbours(names, vectors)(names[10])
    assert len(near) == MOST and {name for name, _ in near} == {names[at] for at in range(6, 15) if at != 10}


def test_the_case_of_a_word_stays() -> None:
    """Words of a tokenizer without cases are found in any; of one with cases, names are near names alone."""
    plain = WordNeighbours(["dog", "cat", "sun", "moon"], around(0.0, 0.1))
    assert plain("dog") == [("cat", 1.0)] and plain("Dog") == [("Cat", 1.0)] and plain("DOG") == [("CAT", 1.0)]
    assert plain("dOg") == [] and plain("Cat") == [("Dog", 1.0)]
    cased = WordNeighbours(
        ["dog", "Rome", "cat", "Paris", "NASA", "ESA"], np.eye(6, dtype=np.float32)[[0, 0, 0, 0, 1, 1]]
    )
    assert cased("Rome") == [("Paris", 1.0)] and cased("dog") == [("cat", 1.0)] and cased("NASA") == [("ESA", 1.0)]
    assert cased("Dog") == [("Cat", 1.0)] and cased("rome") == []
    assert [case_of(word) for word in ("dog", "Dog", "DOG", "dOg", "DoG")] == [
        str.lower,
        str.capitalize,
        str.upper,
        None,
        None,
    ]
    assert case_of("собака") is str.lower and case_of("한국어") is str.lower


def test_neighbours_do_not_depend_on_what_was_requested_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are fixed, each computed once, and only those that are needed."""
    generator = np.random.default_rng(0)
    names = [f"{first}{second}{third}" for first in "abcdefghij" for second in "abcdefghij" for third in "xyz"]
    vectors = generator.normal(size=(300, 6)).astype(np.float32)
    forwards, backwards = WordNeighbours(names, vectors), WordNeighbours(names, vectors)
    first = {name: forwards(name) for name in names}
    assert first == {name: backwards(name) for name in reversed(names)} and any(
        len(near) == MOST for near in first.values()
    )
    computed, compute = list[int](), neighbours._Words._near

    def counted(self: neighbours._Words, start: int) -> list[list[tuple[str, float]]]:
        computed.append(start)
        return compute(self, start)

    monkeypatch.setattr(neighbours._Words, "_near", counted)
    lazy = WordNeighbours(names, vectors)
    assert [lazy(names[at]) for at in (70, 71, 127, 70, 299)] == [first[names[at]] for at in (70, 71, 127, 70, 299)]
    assert computed == [64, 256]


def test_a_few_words_are_enough() -> None:
    """Fewer than the most neighbours."""
    assert WordNeighbours(["dog", "cat"], np.eye(2, dtype=np.float32))("dog") == []
