"""Encoding sources with their targets: what the encoder reads, what the decoder reads, and where it answers."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.labels.model import rowids
from ray_distill.models.text.seq2seq_processor import PairProcessor, pair_processor
from ray_distill.snapshots.pairs import pair_text, read_pair
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.task import Task
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import tiny_causal_tokenizer, tiny_pair_tokenizer, tiny_text_processor

END, PAD, START = 1, 0, 5


def _processor(limit: int = 64, **settings: object) -> PairProcessor:
    return pair_processor(tiny_pair_tokenizer(), limit, LanguageConfig.model_validate(settings), start=START)


def _task() -> Task:
    return get_task("seq2seq")


def _encode(rows: list[str], **settings: object) -> Encoded:
    ids = pa.array([row_id(number) for number in range(len(rows))], rowids.ROW_ID)
    return _task().inputs.encode(pa.table({"row_id": ids, "text": rows}), _processor(**settings))  # type: ignore[arg-type]


def _row(encoded: Encoded, name: str, row: int) -> list[int]:
    feature = encoded.features[name]
    return feature.values[feature.offsets[row] : feature.offsets[row + 1]].tolist()


def _ids(text: str) -> list[int]:
    found: list[int] = tiny_pair_tokenizer()(text)["input_ids"]
    return found


def test_the_decoder_reads_the_target_one_place_later() -> None:
    """From its start token; it answers at each token, the first target token and the end included."""
    encoded = _encode([pair_text("ab", "xyz"), pair_text("longer", "q")])
    assert _row(encoded, "input_ids", 0) == _ids("ab")
    assert _row(encoded, "target", 0) == [*_ids("xyz")[:3], END]
    assert _row(encoded, "decoder_input_ids", 0) == [START, *_ids("xyz")[:3]]
    positions, truth = _task().answers.store.positions(encoded), _task().answers.store.truth(encoded)
    assert positions.values.tolist() == [0, 1, 2, 3, 0, 1] and positions.offsets.tolist() == [0, 4, 6]
    assert positions.values.dtype == np.int32 and truth.offsets.tolist() == [0, 4, 6]


def test_a_batch_is_padded_at_the_end() -> None:
    """Sources and decoder tokens to their own longest, each with its mask; the target itself is no input."""
    encoded = _encode([pair_text("ab", "xyz"), pair_text("longer", "q")])
    batch = {name: value.tolist() for name, value in _task().inputs.collate(encoded, np.array([1, 0])).items()}
    assert set(batch) == {"input_ids", "decoder_input_ids", "attention_mask", "decoder_attention_mask"}
    assert batch["input_ids"] == [_ids("longer"), [*_ids("ab"), PAD, PAD, PAD, PAD]]
    assert batch["decoder_input_ids"] == [[START, _ids("q")[0], PAD, PAD], [START, *_ids("xyz")[:3]]]
    assert batch["attention_mask"] == [[1] * 7, [1, 1, 1, 0, 0, 0, 0]]
    assert batch["decoder_attention_mask"] == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_rows_that_cannot_be_learnt_go_apart_with_reasons() -> None:
    """No target, no source, no pair, nothing: the others are encoded as if they were alone."""
    encoded = _encode([pair_text("a", None), pair_text("a", "b"), "a plain text", pair_text(" ", "b"), " "])
    assert encoded.rows == 1 and [row.reason.split(":")[0] for row in encoded.rejected] == [
        "no target",
        "not a source with its target",
        "empty source",
        "empty text",
    ]
    alone = _encode([pair_text("a", "b")])
    assert all(_row(encoded, name, 0) == _row(alone, name, 0) for name in alone.features)


def test_nothing_encodes_to_nothing() -> None:
    """A unit of rejected rows alone must not fail."""
    assert _encode(["x"]).rows == 0 and _task().answers.store.positions(_encode([])).offsets.tolist() == [0]


def test_long_texts_are_cut_or_rejected() -> None:
    """A source keeps its end token; a target is learnt as far as it goes, without an end that it does not have."""
    rows = [pair_text("abcdefgh", "x"), pair_text("a", "stuvwxyz"), pair_text("a", "b")]
    cut = _encode(rows, limit=5, target_length=3)
    assert _row(cut, "input_ids", 0) == [*_ids("abcd")[:4], END]
    assert _row(cut, "target", 1) == _ids("stu")[:3] and _row(cut, "decoder_input_ids", 1) == [START, *_ids("st")[:2]]
    kept = _encode(rows, limit=5, target_length=3, long="reject")
    assert kept.rows == 1 and [row.reason for row in kept.rejected] == [
        "a source of 9 tokens, more than the 5 allowed",
        "a target of 9 tokens, more than the 3 allowed",
    ]


def test_a_prefix_stands_before_every_source() -> None:
    """As T5 has them; before no target. It is part of the processor's fingerprint, not of the tokens'."""
    encoded = _encode([pair_text("a", "b")], prefix="sum: ")
    assert _row(encoded, "input_ids", 0) == _ids("sum: a") and _row(encoded, "target", 0) == _ids("b")
    plain, other = _processor(), _processor(prefix="sum: ")
    assert plain.tokens_fingerprint == other.tokens_fingerprint and plain.fingerprint != other.fingerprint


def test_another_start_is_other_tokens() -> None:
    """A decoder that starts with another token is asked other questions."""
    other = pair_processor(tiny_pair_tokenizer(), 64, LanguageConfig(), start=START + 1)
    assert other.tokens_fingerprint != _processor().tokens_fingerprint


@pytest.mark.parametrize("name", ["typos", "case", "dropout"])
def test_only_the_source_is_corrupted(name: str) -> None:
    """What is to be written of it stays, and so does the row's id."""
    source = "several words that can be spoilt here " * 4
    rows = pa.table({"row_id": pa.array([row_id(0)], rowids.ROW_ID), "text": [pair_text(source, "the very words")]})
    damaged = _task().inputs.corruptions[name](rows, 3, np.random.default_rng(0))
    found = read_pair(damaged["text"][0].as_py())
    assert found.target == "the very words" and found.source != source
    assert damaged["row_id"].equals(rows["row_id"])


def test_processors_that_cannot_serve_are_refused() -> None:
    """One for texts alone, a tokenizer that does not end a text, and conversations."""
    rows = pa.table({"row_id": pa.array([row_id(0)], rowids.ROW_ID), "text": [pair_text("a", "b")]})
    with pytest.raises(ModelError, match="TextProcessor cannot encode a source with its target"):
        _task().inputs.encode(rows, tiny_text_processor())
    with pytest.raises(ModelError, match="adds no end"):
        pair_processor(tiny_causal_tokenizer(), 64, LanguageConfig(), start=0)
    with pytest.raises(ConfigError, match="not a conversation"):
        _processor(format="chat")


def test_a_saved_tokenizer_keeps_its_limit(tmp_path: Path) -> None:
    """A student's folder reads sources as its teacher did."""
    import transformers

    _processor(limit=17).save(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).model_max_length == 17
