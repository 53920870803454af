"""Kinds of views: what each changes and leaves; and which campaigns have which."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ray_distill.config import Campaign, parse_config
from ray_distill.errors import ConfigError
from ray_distill.snapshots.augment.kinds import Chosen, Kind, with_neighbours
from ray_distill.tasks.catalogue import TASKS, get_task
from ray_distill.tasks.inputs.image_views import IMAGE_VIEWS
from ray_distill.tasks.inputs.pixels import decode_image, encode_png
from ray_distill.tasks.inputs.text_views import TEXT_VIEWS, replace_words
from ray_distill.tasks.view_kinds import chosen_kinds, needs_neighbours, wrong_views

TEXT = b"The quick  brown fox\njumps over the lazy dog"
OTHER = b"eleven other words of another row in a train split"
#: Words with their neighbours.
NEAR = {"quick": [("fast", 0.75), ("rapid", 0.25)], "Dog": [("Cat", 1.0)], "dog": [("cat", 1.0)]}


def neighbours_of(word: str) -> list[tuple[str, float]]:
    return NEAR.get(word, [])


NEIGHBOURS = replace(TEXT_VIEWS["neighbours"], change=replace_words(neighbours_of))
#: Kinds of texts, of which all can make views.
KINDS = {**TEXT_VIEWS, "neighbours": NEIGHBOURS}


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _image(channels: int = 3, height: int = 12, width: int = 10, seed: int = 0) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8))


def _config(task: str, augment: dict[str, Any] | None) -> Campaign:
    return parse_config(
        {
            "campaign": "c",
            "task": task,
            "snapshot": {"source": "a.csv", "augment": augment},
            "labels": {"teacher": {"model": "m:f"}, "signal": {"estimator": "topk", "k": 4}},
        }
    )


@pytest.mark.parametrize("seed", range(20))
def test_word_dropout_leaves_some_words_out_and_keeps_the_rest_as_it_stands(seed: int) -> None:
    """In their order, with their line breaks; never all, and always at least one."""
    found = TEXT_VIEWS["word_dropout"].change([TEXT], 0.1, _generator(seed))
    assert found is not None
    kept, words = found.decode().split(), TEXT.decode().split()
    rest = iter(words)
    assert 0 < len(kept) < len(words) and all(word in rest for word in kept)
    assert b"fox\njumps" in found or b"fox" not in found or b"jumps" not in found
    whole = TEXT_VIEWS["word_dropout"].change([TEXT], 1.0, _generator(seed))
    assert whole is not None and len(whole.split()) == 1


@pytest.mark.parametrize("seed", range(20))
def test_cut_keeps_one_part_of_at_least_the_rest(seed: int) -> None:
    """A contiguous part of the text, of half the words or more at strength 0.5."""
    found = TEXT_VIEWS["cut"].change([TEXT], 0.5, _generator(seed))
    assert found is not None and found in TEXT
    assert len(TEXT.split()) // 2 <= len(found.split()) < len(TEXT.split())


@pytest.mark.parametrize("seed", range(20))
def test_span_mix_has_words_of_both_rows(seed: int) -> None:
    """Own words around one span of the partner's, which is as long as what it replaces."""
    found = TEXT_VIEWS["span_mix"].change([TEXT, OTHER], 0.5, _generator(seed))
    assert found is not None
    words, foreign = found.decode().split(), set(OTHER.decode().split()) - set(TEXT.decode().split())
    places = [at for at, word in enumerate(words) if word in foreign]
    assert len(words) == len(TEXT.split()) and 1 <= len(places) <= round(0.5 * len(words))
    assert places == list(range(places[0], places[-1] + 1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"quick", {b"fast", b"rapid"}),
        (b"the dog  sleeps\nnow", {b"the cat  sleeps\nnow"}),
        ("„(dog!)“ …".encode(), {"„(cat!)“ …".encode()}),
        (b"a Dog, a cat", {b"a Cat, a cat"}),
        (b"dog's dog-like x.dog dog7 _dog DOG", set()),
        ("dog\u0301 dog\u0941".encode(), set()),  # an accent and a vowel sign belong to the last letter
        ("狗dog".encode(), {"狗cat".encode()}),
        (b"no neighbours here", set()),
    ],
)
def test_a_word_is_replaced_with_its_signs_in_place(text: bytes, expected: set[bytes]) -> None:
    """At the least strength one word is; a word with other signs within, or without neighbours, is not."""
    found = {NEIGHBOURS.change([text], 1e-9, _generator(seed)) for seed in range(30)}
    assert found == (expected or {None})


def test_words_are_replaced_by_chance_and_neighbours_drawn_by_weight() -> None:
    """Strength 1 replaces all; else about that share of the words, and at least one."""
    text = b" ".join([b"quick"] * 4000)
    every = NEIGHBOURS.change([text], 1.0, _generator(0)) or b""
    assert set(every.split()) == {b"fast", b"rapid"} and abs(every.count(b"fast") / 4000 - 0.75) < 0.03
    some = NEIGHBOURS.change([text], 0.2, _generator(0)) or b""
    assert abs(some.count(b"quick") / 4000 - 0.8) < 0.03
    assert {NEIGHBOURS.change([b"dog dog dog"], 1e-9, _generator(seed)) for seed in range(40)} == {
        b"cat dog dog",
        b"dog cat dog",
        b"dog dog cat",
    }


def test_a_kind_of_neighbours_makes_no_views_without_them() -> None:
    """No view is silently missing."""
    with pytest.raises(AssertionError, match="before `with_neighbours`"):
        TEXT_VIEWS["neighbours"].change([TEXT], 0.2, _generator(0))
    chosen = [Chosen(name=name, kind=kind, strength=0.5) for name, kind in TEXT_VIEWS.items()]
    bound = {one.name: one.kind for one in with_neighbours(chosen, neighbours_of)}
    assert bound["neighbours"].change([b"dog"], 0.5, _generator(0)) == b"cat"
    assert {name: kind for name, kind in bound.items() if name != "neighbours"} == {
        name: kind for name, kind in TEXT_VIEWS.items() if name != "neighbours"
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_view_of_a_text_is_another_text_and_the_same_chances_give_the_same(name: str) -> None:
    """At any strength: UTF-8 that is not blank."""
    kind = KINDS[name]
    for seed in range(30):
        strength = (0.01, kind.strength, 1.0)[seed % 3]
        found = kind.change([TEXT, OTHER][: 1 + kind.mixes], strength, _generator(seed))
        assert found is not None and found.decode().strip() == found.decode() not in ("", TEXT.decode())
        assert found == kind.change([TEXT, OTHER][: 1 + kind.mixes], strength, _generator(seed))


def test_scripts_without_blanks_have_characters_as_words_and_one_word_has_no_view() -> None:
    """Else a Chinese text would be one word; characters are joined without blanks, words with one."""
    found = TEXT_VIEWS["word_dropout"].change(["今天天气很好。我们去公园".encode()], 0.3, _generator(1))
    assert found is not None and 3 < len(found.decode()) < 12 and b" " not in found
    for kind in KINDS.values():
        assert kind.change([b"hello", OTHER], 0.5, _generator(0)) is None
    joined = TEXT_VIEWS["span_mix"].change([b"a b", b"c"], 0.5, _generator(0))
    assert joined in (b"c b", b"a c")


@pytest.mark.parametrize("name", IMAGE_VIEWS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_of_an_image_has_its_size_and_other_pixels(name: str, channels: int) -> None:
    """Grey stays grey beside grey; the same chances give the same bytes."""
    kind = IMAGE_VIEWS[name]
    inputs = [_image(channels), *([_image(channels, 7, 31, seed=1)] if kind.mixes else [])]
    found = [kind.change(inputs, kind.strength, _generator(seed)) for seed in range(8)]
    assert found == [kind.change(inputs, kind.strength, _generator(seed)) for seed in range(8)]
    views = [decode_image(one) for one in found if one is not None]
    assert len(views) >= 7 and {view.shape for view in views} == {(12, 10, channels)}
    assert all((view != decode_image(inputs[0])).any() for view in views)


def test_shift_moves_and_crop_enlarges_and_flip_mirrors() -> None:
    """One white pixel: moved by at most the strength; a border of it stays a border; mirrored left and right."""
    pixels = np.zeros((20, 20, 1), np.uint8)
    pixels[10, 6] = 255
    for seed in range(20):
        moved = IMAGE_VIEWS["shift"].change([encode_png(pixels)], 0.1, _generator(seed))
        if moved is not None:
            (row, column, _), *more = np.argwhere(decode_image(moved) == 255)
            assert not more and 0 < max(abs(row - 10), abs(column - 6)) <= 2
    flipped = IMAGE_VIEWS["flip"].change([encode_png(pixels)], 1.0, _generator(0))
    assert flipped is not None and np.argwhere(decode_image(flipped)).tolist() == [[10, 13, 0]]
    white = np.full((20, 20, 1), 255, np.uint8)
    assert IMAGE_VIEWS["crop"].change([encode_png(white)], 0.3, _generator(0)) is None
    assert IMAGE_VIEWS["shift"].change([encode_png(white)], 0.3, _generator(0)) is None


def test_mixes_have_a_share_of_the_partner() -> None:
    """Black with white: a grey below the strength everywhere, or a rectangle of white of at most that area."""
    black, white = (encode_png(np.full((16, 24, 1), value, np.uint8)) for value in (0, 255))
    for seed in range(10):
        blended = decode_image(IMAGE_VIEWS["mixup"].change([black, white], 0.5, _generator(seed)) or b"")
        assert len(np.unique(blended)) == 1 and 0 < blended.max() <= 128
        pasted = decode_image(IMAGE_VIEWS["cutmix"].change([black, white], 0.5, _generator(seed)) or b"")
        rows, columns, _ = np.nonzero(pasted)
        assert set(np.unique(pasted)) == {0, 255} and (pasted == 255).mean() < 0.55
        assert (pasted == 255).sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    coloured = IMAGE_VIEWS["mixup"].change([black, _image(3)], 0.5, _generator(0))
    assert coloured is not None and decode_image(coloured).shape == (16, 24, 3)


def test_a_photograph_stays_a_jpeg_and_a_broken_file_has_no_view() -> None:
    """Without loss photographs would take several times the bytes."""
    sink = io.BytesIO()
    Image.fromarray(decode_image(_image())).save(sink, "JPEG")
    found = IMAGE_VIEWS["crop"].change([sink.getvalue()], 0.3, _generator(0))
    assert found is not None and found.startswith(b"\xff\xd8\xff")
    assert IMAGE_VIEWS["crop"].change([b"no image"], 0.3, _generator(0)) is None
    assert IMAGE_VIEWS["mixup"].change([_image(), b"no image"], 0.3, _generator(0)) is None


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_views_or_refuses_them(task: str) -> None:
    """Classes of texts and images; a language model would learn to write damaged texts."""
    config, found = _config(task, {"views": 1}), get_task(task)
    wrong = wrong_views(config, found)
    if found.answers.truth == "none":
        assert len(wrong) == 1 and "damaged texts; leave it out" in wrong[0] and "sequences" in wrong[0]
        with pytest.raises(ConfigError, match="snapshot.augment"):
            chosen_kinds(config, found)
    else:
        assert wrong == [] and {one.name for one in chosen_kinds(config, found)} <= set(found.inputs.views)
        assert not {"flip", "neighbours"} & {one.name for one in chosen_kinds(config, found)}
        assert not needs_neighbours(config, found)
    assert chosen_kinds(_config(task, None), found) == () and wrong_views(_config(task, None), found) == []


def test_kinds_are_named_with_their_strengths() -> None:
    """Sorted by name; an unknown one is refused with those that there are."""
    image, text = get_task("image_classification"), get_task("text_classification")
    config = _config("image_classification", {"kinds": {"shift": 0.2, "flip": 0.5}})
    assert [(one.name, one.strength) for one in chosen_kinds(config, image)] == [("flip", 0.5), ("shift", 0.2)]
    assert needs_neighbours(_config("text_classification", {"kinds": {"cut": 0.1, "neighbours": 0.2}}), text)
    (none,) = wrong_views(_config("image_classification", {"kinds": {"neighbours": 0.2}}), image)
    assert none.startswith("snapshot.augment.kinds: image_classification has no 'neighbours'; it has shift,")
    assert not needs_neighbours(_config("image_classification", {"kinds": {"neighbours": 0.2}}), image)
    (wrong,) = wrong_views(_config("text_classification", {"kinds": {"word_dropuot": 0.1}}), text)
    assert wrong.startswith("snapshot.augment.kinds: text_classification has no 'word_dropuot'; it has word_dropout,")
    assert wrong.endswith("did you mean word_dropout?")


def test_an_own_modality_brings_its_own_kinds_or_is_refused() -> None:
    """Nothing is known of how to change its inputs."""
    task = get_task("text_classification")
    bare = replace(task, inputs=replace(task.inputs, name="readings", views={}))
    (wrong,) = wrong_views(_config("text_classification", {}), bare)
    assert "no views of its inputs (readings); leave it out" in wrong
    own = {"reverse": Kind(change=lambda inputs, strength, generator: inputs[0][::-1], strength=1.0)}
    brought = replace(task, inputs=replace(task.inputs, views=own))
    assert [one.name for one in chosen_kinds(_config("text_classification", {}), brought)] == ["reverse"]
