"""An encoder-decoder that writes: targets of sources, greedily as the evaluation does, and whatever shares a batch."""

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from transformers import GenerationConfig

from ray_distill.config import SequencesConfig, TeacherConfig
from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ConfigError
from ray_distill.labels.model import rowids
from ray_distill.models.io.load import load_model
from ray_distill.models.text.generation import Seq2SeqFormat
from ray_distill.sequences.attempts import answered, rejected_table
from ray_distill.sequences.derive import derive
from ray_distill.sequences.generator import Generator
from ray_distill.snapshots.identity import row_ids
from ray_distill.snapshots.pairs import Pair, pair_text, read_pair
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.snapshots.splits import SPLITS
from ray_distill.tasks.answers.tokens.evaluation.generated_targets import write_targets
from ray_distill.tasks.catalogue import TASKS
from ray_distill.teachers.author import Author, open_author
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import write_tiny_seq2seq_model
from ray_distill.testing.sequences import fake_generator, prompts_snapshot, write_all

PAIRS = [("a source", "its target"), ("a considerably longer source than the others", "x y"), ("no", "z"), ("s", "q")]
METHODS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"candidates": 3, "temperature": 0.8, "top_p": 0.9, "top_k": 40},
    "beam": {"beams": 3, "candidates": 2},
}
KNOWN = 259  # of the tokenizer: a vocabulary without other ids


@pytest.fixture(scope="module", params=["t5", "bart"])
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return write_tiny_seq2seq_model(
        tmp_path_factory.mktemp("models") / "pairs", seed=0, architecture=request.param, vocab_size=KNOWN
    )


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_seq2seq_model(tmp_path_factory.mktemp("models") / "t5", seed=0)


def _open(folder: Path, method: str = "greedy", *, language: dict[str, Any] | None = None, **settings: Any) -> Author:
    values = {"method": method, "new_tokens": 10, **METHODS[method], **settings}
    teacher = TeacherConfig(model=str(folder), language=LanguageConfig(**(language or {})))
    return open_author(teacher, SequencesConfig.model_validate(values), task="seq2seq", seed=1)


def _rows(pairs: list[tuple[str, str | None]]) -> pa.Table:
    return pa.table(
        {
            "row_id": pa.array([row_id(n) for n in range(len(pairs))], rowids.ROW_ID),
            "text": [pair_text(*pair) for pair in pairs],
            "count": [1] * len(pairs),
        }
    )


def _written(author: Author, rows: pa.Table, index: list[int] | None = None) -> dict[tuple[bytes, int], dict[str, Any]]:
    prompts = author.encode(rows)
    table = author.write(prompts, np.array(range(len(prompts.texts)) if index is None else index, np.int64))
    return {(row["row_id"], row["candidate"]): row for row in table.to_pylist()}


def test_greedy_is_what_the_evaluation_sees_the_teacher_write(folder: Path) -> None:
    """As far as a target may go, with and without a prefix; what the row's own target is does not count."""
    for language in ({"target_length": 12}, {"target_length": 12, "prefix": "spell: "}):
        author = _open(folder, new_tokens=12, language=language)
        found = _written(author, _rows([*PAIRS]))
        model = load_model(TeacherConfig(model=str(folder), language=LanguageConfig(**language)), task="seq2seq")
        expected = write_targets({"teacher": model}, _rows([*PAIRS]), task=TASKS["seq2seq"], batch=2)["teacher"]
        assert [row["text"] for row in found.values()] == expected["written"].to_pylist()
        unwritten = _written(author, _rows([(source, None) for source, _ in PAIRS]))
        assert {key: row["text"] for key, row in unwritten.items()} == {key: row["text"] for key, row in found.items()}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_does_not_depend_on_the_batch(folder: Path, method: str) -> None:
    """Alone, in another order, in other company: the same targets; log-probabilities up to rounding."""
    author = _open(folder, method)
    whole = _written(author, _rows([*PAIRS]))
    assert len(whole) == len(PAIRS) * author.settings.candidates
    for index in ([0], [3, 1], [2, 1, 0]):
        for key, row in _written(author, _rows([*PAIRS]), index).items():
            assert {**row, "log_probability": 0} == {**whole[key], "log_probability": 0}
            assert row["log_probability"] == pytest.approx(whole[key]["log_probability"], abs=1e-3)
    if method == "sample":
        assert len({row["text"] for row in whole.values()}) > len(PAIRS)


@pytest.mark.parametrize("method", METHODS)
def test_the_log_probability_is_that_of_teacher_forcing(folder: Path, method: str) -> None:
    """Neither tempered nor cut, the token that ends a target included."""
    author = _open(folder, method)
    module = author.model.module
    prompts = author.encode(_rows([*PAIRS]))
    with torch.inference_mode():
        tokens, logp = (
            author._beams(prompts.tokens) if method == "beam" else author._tokens(prompts.tokens, prompts.row_ids)
        )
        for place, (one, total) in enumerate(zip(tokens, logp, strict=True)):
            source = prompts.tokens[place // author.settings.candidates]
            read = torch.tensor([[0, *one.tolist()[:-1]]])
            logits_LV = module(input_ids=torch.tensor([source.tolist()]), decoder_input_ids=read).logits[0]
            forced = logits_LV.log_softmax(-1).gather(-1, torch.tensor(one.astype(np.int64))[:, None]).sum()
            assert total == pytest.approx(float(forced), abs=1e-3)


def test_a_target_ends_where_its_model_ends_it(t5: Path) -> None:
    """At once, where ending is all that it wants: empty, ended, and read again as it was written."""
    author = _open(t5)
    with torch.no_grad():
        author.model.module.lm_head.weight.zero_()
    for row in _written(author, _rows([*PAIRS])).values():  # all logits are equal: <pad>, which is no text, all along
        assert (row["text"], row["tokens"], row["ended"], row["same_tokens"]) == ("", 10, False, False)
    head = author.model.module.lm_head
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    with torch.no_grad():
        head.bias[1], head.bias[-1] = 5.0, 9.0  # the last id is none of the tokenizer's
    for row in _written(author, _rows([*PAIRS])).values():
        assert (row["text"], row["tokens"], row["ended"], row["same_tokens"]) == ("", 1, True, True)


def test_whether_a_target_reads_back_is_told(t5: Path) -> None:
    """Letters with their end do, halves of a character do not."""
    form, source = _open(t5).form, np.zeros(1, np.int32)
    whole = np.array(form.tokenizer("größer", add_special_tokens=False)["input_ids"], np.int32)
    for tokens, same in ((whole, True), (whole[:3], False)):
        assert form.reads_back(pair_text("s", None), form.text(source, tokens), source, tokens) is same


def test_tokens_that_belong_to_the_weights_are_heard(t5: Path, tmp_path: Path) -> None:
    """A language before each target, words that are never written and a second end, as `generate` itself hears them."""
    write_tiny_seq2seq_model(tmp_path / "own", seed=0, vocab_size=KNOWN)
    prompts = _open(tmp_path / "own").encode(_rows([*PAIRS]))
    plain, _ = _open(tmp_path / "own")._tokens(prompts.tokens, prompts.row_ids)
    never = [[int(one[0])] for one in plain] + [[int(one[1]), int(one[2])] for one in plain]
    own = {"forced_bos_token_id": 70, "bad_words_ids": never, "eos_token_id": [1, 5]}
    GenerationConfig(**own).save_pretrained(tmp_path / "own")
    author = _open(tmp_path / "own", language={"target_length": 11})
    found, _ = author._tokens(prompts.tokens, prompts.row_ids)
    assert isinstance(author.form, Seq2SeqFormat) and (author.form.begin, author.stops) == ((0, 70), (1, 5))
    options = GenerationConfig(max_new_tokens=11, decoder_start_token_id=0, pad_token_id=0, **own)
    for source, one, before in zip(prompts.tokens, found, plain, strict=True):
        expected = cast(Any, author.model.module).generate(torch.tensor([source.tolist()]), generation_config=options)
        assert expected[0].tolist() == [0, 70, *one.tolist()] and [int(one[0])] not in never
        assert one.tolist() != before.tolist()
    assert author.form.token_fingerprint and not _open(t5).form.token_fingerprint
    with pytest.raises(ConfigError, match="of a target of the teacher .* 10 tokens are learnt"):
        _open(tmp_path / "own", new_tokens=11, language={"target_length": 11})


def test_habits_of_a_checkpoint_are_not_heard(t5: Path, tmp_path: Path) -> None:
    """A penalty and a least length of its generation config change nothing."""
    shutil.copytree(t5, tmp_path / "own")
    GenerationConfig(repetition_penalty=9.0, min_new_tokens=9, eos_token_id=1).save_pretrained(tmp_path / "own")
    assert _written(_open(tmp_path / "own"), _rows([*PAIRS])) == _written(_open(t5), _rows([*PAIRS]))


def test_sources_that_cannot_be_read_get_reasons(t5: Path) -> None:
    """No pair, nothing in it, more than the teacher reads; a long one is cut unless that is refused."""
    rows = pa.table(
        {
            "row_id": pa.array([row_id(n) for n in range(4)], rowids.ROW_ID),
            "text": ["plain", pair_text(" ", "t"), pair_text("a" * 90, None), pair_text("b", None)],
        }
    )
    cut = _open(t5, language={"target_length": 10}).encode(rows)
    assert [len(tokens) for tokens in cut.tokens] == [64, 2]
    assert [why.partition(":")[0] for _, why in cut.rejected] == ["not a source with its target", "empty source"]
    whole = _open(t5, language={"target_length": 10, "long": "reject"}).encode(rows)
    assert whole.rejected[2][1] == "a source of 91 tokens, more than the 64 allowed" and len(whole.tokens) == 1


def test_more_than_is_learnt_of_a_target_is_not_written(t5: Path) -> None:
    """With the way out."""
    with pytest.raises(ConfigError, match="new_tokens is 10, but of a target of the teacher .* 9 tokens are learnt"):
        _open(t5, language={"target_length": 9})


def test_a_derived_snapshot_holds_the_teachers_targets(t5: Path, tmp_path: Path) -> None:
    """Pairs of the parents' sources, in their splits, written anew or for the first time; other splits as they were."""
    pairs = [(f"source {n}", f"reference {n}" if n % 2 else None) for n in range(40)]
    parent = prompts_snapshot(tmp_path, [pair_text(*pair) for pair in pairs])
    author = _open(t5, "sample", candidates=2, top_k=9)
    generator = fake_generator(format="pair", candidates=2)

    def write(rows: pa.Table, _: Generator) -> pa.Table:
        prompts = author.encode(rows)
        parts = [author.write(prompts, index) for index in prompts.plan(4)]
        return pa.concat_tables([*parts, rejected_table(prompts.rejected)])

    store = write_all(str(tmp_path / "w"), generator, parent, write)
    settings = SequencesConfig.model_validate({"method": "sample", "candidates": 2, "filters": {"dedup": False}})
    derived = open_snapshot(derive(parent, store, settings, url=str(tmp_path / "s"), shard_rows=64).ref)
    before = {
        row["row_id"]: (split, read_pair(row["text"])) for split in SPLITS for row in parent.read(split).to_pylist()
    }
    texts = answered(
        store.read(
            rowids.from_bytes(sorted(row for row, (split, _) in before.items() if split in ("train", "validation")))
        )
    )
    wrote = {(row["row_id"], row["candidate"]): row["text"] for row in texts.to_pylist()}
    for split in SPLITS:
        rows = derived.read(split)
        assert rows["row_id"].to_pylist() == list(row_ids_of(rows))
        for row in rows.to_pylist():
            parent_id = row["sequence_parent"]
            if split in ("calibration", "test"):
                assert parent_id is None and before[row["row_id"]] == (split, read_pair(row["text"]))
            else:
                source = before[parent_id][1].source
                assert before[parent_id][0] == split
                assert read_pair(row["text"]) == Pair(source, wrote[parent_id, row["sequence_candidate"]])
    parents = pa.concat_tables([derived.read(split) for split in ("train", "validation")])["sequence_parent"]
    assert pc.count_distinct(parents).as_py() == sum(split in ("train", "validation") for split, _ in before.values())


def row_ids_of(rows: pa.Table) -> list[bytes]:
    """Ids that any snapshot would give these texts."""
    found = row_ids(rows["text"].cast(pa.large_string()), "text")
    return [bytes(row).ljust(16, b"\0") for row in found]
