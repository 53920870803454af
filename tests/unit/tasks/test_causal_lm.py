"""Labelling raw text: each token but the last is answered, and a row's labels owe nothing to its batch."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from ray_distill.errors import ModelError
from ray_distill.labels.format.arrow_tables import signal_to_table, table_to_signal
from ray_distill.labels.model import rowids
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.labels.model.signal import concat_signals
from ray_distill.models.core.fingerprint import finish
from ray_distill.models.core.row_classes import named
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.encoded import Encoded
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.reduce import Places, reduce_logits
from ray_distill.teachers.transformers_teacher import TransformersTeacher
from ray_distill.testing.labels import row_id

VOCABULARY = 23
TEXTS = ["a bb ccc", "dd", "e ff g hh i", "  ", "jj k"]


class Words:
    """A tokenizer: one token a word, its length; enough to tell texts apart."""

    fingerprint = "words"

    def texts(self, texts: list[str]) -> dict[str, RaggedArray]:
        tokens = [[len(word) * 3 + ord(word[0]) % 3 for word in text.split()] for text in texts]
        offsets = np.append(0, np.cumsum([len(row) for row in tokens])).astype(np.int64)
        return {"input_ids": RaggedArray(values=np.concatenate([[], *tokens]).astype(np.int32), offsets=offsets)}


class Counting(nn.Module):
    """Logits of a token depend on it and on all before it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table_VV = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=generator))

    def forward(self, input_ids: Any, attention_mask: Any, output_hidden_states: bool = False) -> Any:
        states_BLV = self.table_VV[input_ids].cumsum(1)
        return SimpleNamespace(logits=states_BLV, hidden_states=(states_BLV,) if output_hidden_states else None)


def _rows() -> pa.Table:
    return pa.table({"row_id": pa.array([row_id(n) for n in range(len(TEXTS))], rowids.ROW_ID), "text": TEXTS})


def _teacher(task: str = "causal_lm") -> TransformersTeacher:
    model = finish(
        Counting(),
        Words(),
        named(tuple(map(str, range(VOCABULARY)))),
        task=task,
        url="test:counting",
        identity={},
        describe={},
    )
    return TransformersTeacher(model=model, task=get_task("causal_lm"))


def _encoded() -> Encoded:
    return get_task("causal_lm").inputs.encode(_rows(), Words())


def _ask(estimator: str) -> LabelRequest:
    return LabelRequest(estimator=estimator, k=4, temperatures=(1.0, 2.0), layers=(0,), pool="last", draws=9, seed=3)


def test_every_token_but_the_last_is_answered() -> None:
    """Rows of 3, 5 and 2 tokens have 2, 4 and 1 positions; blank texts and single tokens are rejected with reasons."""
    encoded = _encoded()
    answered = get_task("causal_lm").answers.store.positions(encoded)
    assert np.diff(answered.offsets).tolist() == [2, 4, 1] and answered.values.tolist() == [0, 1, 0, 1, 2, 3, 0]
    assert {row.row_id: row.reason for row in encoded.rejected} == {
        row_id(3): "empty text",
        row_id(1): "fewer than two tokens",
    }


@pytest.mark.parametrize("estimator", ["dense", "topk", "sampled", "hybrid"])
def test_a_rows_labels_owe_nothing_to_its_batch(estimator: str) -> None:
    """All rows padded in one batch, or each alone: the same positions, entries, draws, tails and entropies."""
    encoded, teacher = _encoded(), _teacher()
    together = teacher.answer(encoded, _ask(estimator))
    alone = concat_signals([teacher.answer(encoded.take(np.array([row])), _ask(estimator)) for row in range(3)])
    one, other = together.distributions, alone.distributions
    assert one is not None and other is not None
    for name in ("row_offsets", "position", "entry_offsets", "ids"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in ("logp", "log_tail", "entropy"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6, err_msg=name)
    if one.draws is not None and other.draws is not None:
        np.testing.assert_array_equal(one.draws.count, other.draws.count)


def test_the_answer_at_a_token_is_the_models() -> None:
    """Dense log-probabilities of the last row's only position are the model's own at its first token."""
    signal = _teacher().answer(_encoded(), _ask("dense"))
    tokens = torch.from_numpy(Words().texts([TEXTS[4]])["input_ids"].values.astype(np.int64))[None]
    exact_V = Counting()(tokens, None).logits[0, 0].log_softmax(-1).detach().numpy()
    np.testing.assert_allclose(signal.distributions.logp[-VOCABULARY:], exact_V, atol=1e-6)


def test_draws_differ_from_token_to_token() -> None:
    """The draws are seeded by row and position: equal distributions at two tokens are not drawn alike."""
    logits_NV = torch.zeros(2, 500)
    places = Places(row_offsets=np.array([0, 2]), position=np.array([0, 1], np.int32), logits=np.array([0, 0]))
    found = reduce_logits(logits_NV, _ask("sampled"), pa.array([row_id(1)], rowids.ROW_ID), places)
    first, second = np.split(found.ids, found.entry_offsets[1:2])
    assert found.rows == 1 and first.tolist() != second.tolist()


def test_the_signal_passes_between_stages() -> None:
    """Rows of several positions survive the Arrow table that workers hand over."""
    encoded, teacher = _encoded(), _teacher()
    signal = teacher.answer(encoded, _ask("hybrid"))
    ids, found = table_to_signal(signal_to_table(encoded.row_ids, "unit", signal))
    assert ids.equals(encoded.row_ids)
    assert found.distributions is not None and signal.distributions is not None
    np.testing.assert_array_equal(found.distributions.row_offsets, signal.distributions.row_offsets)
    np.testing.assert_array_equal(found.distributions.position, signal.distributions.position)
    np.testing.assert_array_equal(found.distributions.ids, signal.distributions.ids)


def test_a_model_of_another_kind_is_refused_by_name() -> None:
    """One answer a token where one a row is expected, or the other way round: an error with both shapes."""
    with pytest.raises(ModelError, match=r"logits of shape \[1, 1, 23\]: expected \[1, 23\]"):
        assert _teacher("text_classification").model.states
    assert _teacher().model.states.widths == (VOCABULARY,)
