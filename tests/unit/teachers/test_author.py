"""A teacher that writes: what it writes is a function of prompt, candidate, seed and settings, not of its batch."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import GenerationConfig

from ray_distill.config import SequencesConfig, TeacherConfig
from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.labels.model import rowids
from ray_distill.models.text.decode import reads_back, text_of
from ray_distill.models.text.lm_processor import LanguageProcessor, language_processor
from ray_distill.sequences.texts import with_answer
from ray_distill.teachers.author import Author, open_author, weights
from ray_distill.teachers.draw import independent
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import tiny_causal_tokenizer, write_tiny_causal_model

TEXTS = ["a text", "A considerably longer text than the others", "no", "another one", "x"]
CHATS = [
    '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]',
    '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "and?"}], "tools": null}',
]
METHODS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"candidates": 3, "temperature": 0.8, "top_p": 0.9, "top_k": 40},
    "beam": {"beams": 3, "candidates": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_causal_model(tmp_path_factory.mktemp("models") / "causal", seed=0)


def _open(folder: Path, method: str = "greedy", *, seed: int = 1, form: Any = "text", **settings: Any) -> Author:
    values = {"method": method, "new_tokens": 10, **METHODS[method], **settings}
    teacher = TeacherConfig(model=str(folder), language=LanguageConfig(format=form))
    return open_author(teacher, SequencesConfig.model_validate(values), task="causal_lm", seed=seed)


def _rows(texts: list[str]) -> pa.Table:
    return pa.table({"row_id": pa.array([row_id(n) for n in range(len(texts))], rowids.ROW_ID), "text": texts})


def _written(
    author: Author, texts: list[str], index: list[int] | None = None
) -> dict[tuple[bytes, int], dict[str, Any]]:
    prompts = author.encode(_rows(texts))
    table = author.write(prompts, np.array(range(len(texts)) if index is None else index, np.int64))
    return {(row["row_id"], row["candidate"]): row for row in table.to_pylist()}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_does_not_depend_on_the_batch(folder: Path, method: str) -> None:
    """Alone, in another order, in other company: the same texts; log-probabilities up to rounding."""
    author = _open(folder, method)
    whole = _written(author, TEXTS)
    assert len(whole) == len(TEXTS) * author.settings.candidates
    for index in ([0], [4, 1], [3, 2, 0], [1]):
        for key, row in _written(author, TEXTS, index).items():
            assert {**row, "log_probability": 0} == {**whole[key], "log_probability": 0}
            assert row["log_probability"] == pytest.approx(whole[key]["log_probability"], abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_the_log_probability_is_the_models_own(folder: Path, method: str) -> None:
    """Greedy is what a loop of plain forward passes writes; every log-probability is neither tempered nor cut."""
    author = _open(folder, method)
    module, known = author.model.module, len(author.form.tokenizer)
    for text in TEXTS[:2]:
        prompts = author.encode(_rows([text]))
        with torch.inference_mode():
            tokens, logp = (
                author._beams(prompts.tokens) if method == "beam" else author._tokens(prompts.tokens, prompts.row_ids)
            )
        for one, total in zip(tokens, logp, strict=True):
            sofar, forced = prompts.tokens[0].tolist(), 0.0
            for token in one.tolist():
                with torch.no_grad():
                    logits_V = module(torch.tensor([sofar])).logits[0, -1]
                assert method != "greedy" or token == int(logits_V[:known].argmax())
                forced += float(logits_V.log_softmax(-1)[token])
                sofar.append(token)
            assert total == pytest.approx(forced, abs=1e-3)


def test_samples_differ_by_candidate_seed_and_prompt_and_not_by_run(folder: Path) -> None:
    """Twice the same; another seed writes something else; so do equal prompts of different rows."""
    first = _written(_open(folder, "sample"), TEXTS)
    assert _written(_open(folder, "sample"), TEXTS) == first
    texts = {key: row["text"] for key, row in first.items()}
    assert len(set(texts.values())) == len(texts)
    other = {key: row["text"] for key, row in _written(_open(folder, "sample", seed=2), TEXTS).items()}
    assert not set(other.values()) & set(texts.values())
    equal = _written(_open(folder, "sample", candidates=1), ["same", "same"])
    assert len({row["text"] for row in equal.values()}) == 2


def test_tokens_are_drawn_as_often_as_they_are_likely(folder: Path) -> None:
    """The first token of 3,000 rows against the model's own distribution (a chi-square's 5-sigma bound)."""
    author, count = _open(folder, "sample", candidates=1, temperature=1.0, top_p=1.0, top_k=5, new_tokens=1), 3000
    prompts = author.encode(_rows(["abc"]))
    with torch.no_grad():
        logits_V = author.model.module(torch.tensor([prompts.tokens[0].tolist()])).logits[0, -1]
    p_V = weights(logits_V[None], author.settings)[0]
    p_V = (p_V / p_V.sum()).double().numpy()
    ids = rowids.from_bytes(row_id(n) for n in range(count))
    drawn = author._choose(ids, np.zeros(count, np.int32))(logits_V.expand(count, -1), 0)
    found = Counter(drawn.tolist())
    assert set(found) <= set(np.flatnonzero(p_V).tolist()) and np.count_nonzero(p_V) == 5
    for token in np.flatnonzero(p_V):
        spread = (count * p_V[token] * (1 - p_V[token])) ** 0.5
        assert abs(found[int(token)] - count * p_V[token]) < 5 * spread


def test_uniforms_of_rows_candidates_and_steps_are_their_own() -> None:
    """No two of 4 rows, 3 candidates and 5 steps share a number, and all lie in [0, 1)."""
    ids = np.repeat(rowids.from_bytes(row_id(n) for n in range(4)), 3)
    candidate = np.tile(np.arange(3, dtype=np.int32), 4)
    found = np.concatenate([independent(ids, candidate, step=step, seed=0) for step in range(5)])
    assert len(np.unique(found)) == 60 and found.min() >= 0 and found.max() < 1


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 1]),
        ({"top_p": 0.6}, [0, 1]),
        ({"top_p": 0.49}, [0]),
        ({"top_p": 0.01}, [0]),
        ({"top_k": 3, "top_p": 0.9}, [0, 1, 2]),
        ({"top_k": 2, "temperature": 5.0}, [0, 1]),
        ({"top_k": 9}, [0, 1, 2, 3]),
    ],
)
def test_what_is_drawn_from_is_cut_by_rank_and_by_mass(settings: dict[str, Any], kept: list[int]) -> None:
    """Of 0.5, 0.3, 0.15, 0.05: the fewest that have the mass, of those that the rank left; shares are the model's."""
    p_V = torch.tensor([0.5, 0.3, 0.15, 0.05])
    found_V = weights(p_V.log()[None], SequencesConfig.model_validate({"method": "sample", **settings}))[0]
    assert torch.nonzero(found_V)[:, 0].tolist() == kept
    shares = p_V[kept] ** (1 / settings.get("temperature", 1.0))
    torch.testing.assert_close(found_V[kept] / found_V[kept].sum(), shares / shares.sum())


def test_a_sequence_ends_at_an_end_token_that_is_counted_and_not_shown(folder: Path) -> None:
    """At once, where ending is all that a model wants; ids that the tokenizer lacks are never written."""
    author = _open(folder, "greedy")
    (stop,), head = author.stops, author.model.module.lm_head
    with torch.no_grad():
        head.weight.zero_()
        head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
        head.bias[stop], head.bias[-1] = 5.0, 9.0  # the last id is none of the tokenizer's
    for row in _written(author, TEXTS).values():
        assert (row["text"], row["tokens"], row["ended"], row["same_tokens"]) == ("", 1, True, True)


def test_a_conversation_is_gone_on_with_by_the_assistant(folder: Path) -> None:
    """Its last answer is left out, the header of a new one stands at the end, and a turn's end ends the answer."""
    author = _open(folder, form="chat")
    prompts = author.encode(_rows([*CHATS, '[{"role": "assistant", "content": "alone"}]', "{"]))
    decoded = [author.form.tokenizer.decode(tokens.tolist()) for tokens in prompts.tokens]
    assert decoded == [
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert [author.form.tokenizer.decode([stop]) for stop in author.stops] == ["<|end|>", "<|im_end|>"]
    assert [reason.partition(":")[0] for _, reason in prompts.rejected] == ["no prompt", "not JSON"]
    assert author.write(prompts, np.arange(2)).num_rows == 2


def test_a_prompt_without_room_and_an_answer_without_numbers_get_reasons(folder: Path) -> None:
    """128 tokens less 10 are left for a prompt; a model of NaN writes nothing."""
    author = _open(folder)
    prompts = author.encode(_rows(["a" * 118, "a" * 119, ""]))
    assert [len(tokens) for tokens in prompts.tokens] == [118]
    assert [reason for _, reason in prompts.rejected] == [
        "prompt too long: with sequences.new_tokens = 10 the teacher reads 118 tokens of it",
        "no prompt: not one token",
    ]
    for method in METHODS:
        broken = _open(folder, method)
        with torch.no_grad():
            broken.model.module.lm_head.weight.fill_(torch.nan)
        found = broken.write(broken.encode(_rows(["a", "b"])), np.arange(2)).to_pylist()
        assert [row["reason"] for row in found] == ["distribution is NaN or infinite"] * 2


def test_what_the_checkpoint_says_of_generating_does_not_count(folder: Path, tmp_path: Path) -> None:
    """A repetition penalty and a length of its generation config change nothing; its end tokens are heard."""
    shutil.copytree(folder, tmp_path / "own")
    GenerationConfig(repetition_penalty=9.0, max_length=3, min_new_tokens=9, eos_token_id=[2, 3]).save_pretrained(
        tmp_path / "own"
    )
    assert _open(tmp_path / "own").stops == (2, 3)
    assert _open(tmp_path / "own").form.token_fingerprint and not _open(folder).form.token_fingerprint
    texts = [row["text"] for row in _written(_open(folder), TEXTS).values()]
    assert [row["text"] for row in _written(_open(tmp_path / "own"), TEXTS).values()] == texts


def test_whether_a_text_reads_back_is_told(folder: Path) -> None:
    """Bytes that are UTF-8 come back as they were written, halves of a character do not; in both formats."""
    tokenizer = tiny_causal_tokenizer()
    for form, row in (("text", "a "), ("chat", CHATS[0])):
        processor = language_processor(tokenizer, 128, LanguageConfig(format=form))
        assert isinstance(processor, LanguageProcessor)
        (prompt,), _ = processor.prompts([row])
        good = np.array(tokenizer("größer x", add_special_tokens=False)["input_ids"], np.int32)
        assert text_of(processor, prompt, good) == "größer x"
        assert reads_back(processor, row, "größer x", prompt, tokens=good)
        half = good[:3]
        assert not reads_back(processor, row, text_of(processor, prompt, half), prompt, tokens=half)


def test_an_answer_takes_the_place_of_the_rows_own() -> None:
    """Behind a text; as the last message of a conversation, whose other keys stay, in canonical JSON."""
    assert with_answer("a ", "b", "text") == "a b"
    assert with_answer(CHATS[0], "é", "chat") == ('[{"content":"a","role":"user"},{"content":"é","role":"assistant"}]')
    assert with_answer(CHATS[1], "x", "chat") == (
        '{"messages":[{"content":"s","role":"system"},{"content":"and?","role":"user"},'
        '{"content":"x","role":"assistant"}]}'
    )


def test_who_cannot_write_is_told(folder: Path) -> None:
    """No room for a prompt; no language model of transformers."""
    with pytest.raises(ConfigError, match="new_tokens is 128, but the teacher .* reads 128 tokens, prompt included"):
        _open(folder, new_tokens=128)

    with pytest.raises(ModelError, match="cannot write: found a TinyText with a LanguageProcessor"):
        open_author(
            TeacherConfig(model="ray_distill.testing.models:tiny_text_model", arguments={"classes": ["a"]}),
            SequencesConfig(),
            task="causal_lm",
            seed=0,
        )
