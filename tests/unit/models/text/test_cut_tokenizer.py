"""Cutting tokenizers: texts of kept tokens are cut as before, and every other text stays readable."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from ray_distill.errors import ConfigError
from ray_distill.models.text.cut_tokenizer import cut_tokenizer, token_choice
from tests.labs.tiny_tokenizers import SENTENCES, TOKENIZERS

WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def cut(tokenizer: Any) -> tuple[Any, list[int]]:
    return _cut(tokenizer, SENTENCES[:3])


def _cut(tokenizer: Any, texts: tuple[str, ...]) -> tuple[Any, list[int]]:
    """Return the tokenizer with the tokens of some texts, and their former ids."""
    choice = token_choice(tokenizer, "teacher")
    names = {index: token for token, index in choice.tokens.items()}
    seen = {index for text in texts for index in tokenizer(text)["input_ids"]}
    kept = sorted(choice.always | {part for index in seen for part in choice.closed(index, names)})
    return cut_tokenizer(tokenizer, kept, "teacher"), kept


def test_fewer_tokens_are_left(tokenizer: Any, cut: tuple[Any, list[int]]) -> None:
    """There are as many tokens as were kept, and each special token has the name that it had."""
    found, kept = cut
    assert len(found) == len(kept) < len(tokenizer)
    assert found.special_tokens_map == tokenizer.special_tokens_map
    assert kept[found.pad_token_id] == tokenizer.pad_token_id


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=8))
def test_texts_of_kept_tokens_are_cut_as_before(tokenizer: Any, cut: tuple[Any, list[int]], words: list[str]) -> None:
    """Where all tokens of a text are kept, the text has the same ones; else no unknown one more."""
    found, kept = cut
    text = " ".join(words)
    before, after = tokenizer(text)["input_ids"], [kept[index] for index in found(text)["input_ids"]]
    if set(before) <= set(kept):
        assert after == before
    assert after.count(tokenizer.unk_token_id) == before.count(tokenizer.unk_token_id)


def test_some_texts_change_and_some_do_not(tokenizer: Any, cut: tuple[Any, list[int]]) -> None:
    """The property above has both kinds: the sentences that were kept, and others."""
    found, kept = cut
    same = [tokenizer(text)["input_ids"] == [kept[index] for index in found(text)["input_ids"]] for text in SENTENCES]
    assert same[:3] == [True] * 3 and not all(same)


def test_a_cut_tokenizer_loads_in_plain_transformers(cut: tuple[Any, list[int]], tmp_path: Path) -> None:
    """Saved and loaded by name alone, it cuts texts in the same way."""
    found, _ = cut
    found.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert again.get_vocab() == found.get_vocab()
    for text in SENTENCES:
        assert again(text)["input_ids"] == found(text)["input_ids"]


def test_keeping_all_tokens_changes_nothing(tokenizer: Any) -> None:
    """The tokens keep their ids and every text its tokens."""
    found = cut_tokenizer(tokenizer, sorted(tokenizer.get_vocab().values()), "teacher")
    assert found.get_vocab() == tokenizer.get_vocab()
    assert [found(text)["input_ids"] for text in SENTENCES] == [tokenizer(text)["input_ids"] for text in SENTENCES]


def test_a_tokenizer_of_whole_words_is_refused() -> None:
    """Words that are left out would all become the unknown one."""
    inner = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1, "word": 2}, unk_token="[UNK]"))
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")
    with pytest.raises(ConfigError, match="the tokenizer of /teacher is WordLevel, .*: set vocabulary to null"):
        token_choice(whole, "/teacher")
