"""Encoder-decoders as teachers: with the reference before it, what is said of each of its tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.config import TeacherConfig
from ray_distill.labels.format.arrow_tables import signal_to_table, table_to_signal
from ray_distill.labels.model import rowids
from ray_distill.labels.model.signal import concat_signals
from ray_distill.snapshots.pairs import pair_text
from ray_distill.tasks.encoded import Encoded
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.transformers_teacher import TransformersTeacher, open_teacher
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import write_tiny_seq2seq_model

V = 264
PAIRS = [("a source", "its target"), ("a considerably longer source", "x"), ("s", "a target longer than its source")]
Family = Literal["t5", "bart"]


def _open(folder: Path, family: Family) -> TransformersTeacher:
    write_tiny_seq2seq_model(folder, seed=0, architecture=family)
    found = open_teacher(TeacherConfig(model=str(folder)), task="seq2seq")
    return replace(found, model=replace(found.model, module=found.model.module.double()))


def _encode(teacher: TransformersTeacher) -> Encoded:
    ids = pa.array([row_id(number) for number in range(len(PAIRS))], rowids.ROW_ID)
    rows = pa.table({"row_id": ids, "text": [pair_text(*pair) for pair in PAIRS]})
    return teacher.task.inputs.encode(rows, teacher.model.processor)


def _ask(**values: Any) -> LabelRequest:
    return LabelRequest(**({"estimator": "dense", "k": 5, "temperatures": (1.0,), "draws": 7, "seed": 3} | values))


def _by_hand(teacher: TransformersTeacher, source: str, target: str) -> torch.Tensor:
    """Log-probabilities ``[L, V]`` of a pair alone, by transformers' own teacher forcing: ``labels`` moved right."""
    tokenizer = teacher.model.processor.tokenizer  # type: ignore[attr-defined]
    ids, labels = (torch.tensor([tokenizer(text)["input_ids"]]) for text in (source, target))
    with torch.no_grad():
        found: torch.Tensor = teacher.model.module(input_ids=ids, labels=labels).logits
    return found[0].log_softmax(-1)


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("whole", [False, True])
def test_answers_are_those_of_transformers_teacher_forcing(tmp_path: Path, family: Family, whole: bool) -> None:
    """In float64, at every token of the target with its end, whatever pads the batch; and so with whole logits."""
    teacher = _open(tmp_path, family)
    if whole:
        teacher.model.__dict__["apart"] = None
    found = teacher.answer(_encode(teacher), _ask()).distributions
    assert found is not None and found.classes == V
    for row, (source, target) in enumerate(PAIRS):
        at = slice(found.row_offsets[row], found.row_offsets[row + 1])
        expected = _by_hand(teacher, source, target).numpy()
        np.testing.assert_array_equal(found.position[at], np.arange(len(target) + 1))
        entries = slice(found.entry_offsets[at.start], found.entry_offsets[at.stop])
        rows = np.repeat(np.arange(len(expected)), np.diff(found.entry_offsets[at.start : at.stop + 1]))
        np.testing.assert_allclose(found.logp[entries], expected[rows, found.ids[entries]], atol=1e-5)


@pytest.mark.parametrize("estimator", ["topk", "sampled", "hybrid"])
def test_an_answer_owes_nothing_to_its_batch(tmp_path: Path, estimator: str) -> None:
    """Row by row and together: the same labels, draws included, and the same hidden states of the decoder."""
    teacher = _open(tmp_path, "t5")
    encoded, request = _encode(teacher), _ask(estimator=estimator, layers=(0, 2), pool="token")
    together = teacher.answer(encoded, request)
    alone = concat_signals([teacher.answer(encoded.take(np.array([row])), request) for row in range(encoded.rows)])
    assert together.distributions is not None and alone.distributions is not None
    for name in ("position", "row_offsets", "ids"):
        np.testing.assert_array_equal(getattr(together.distributions, name), getattr(alone.distributions, name))
    np.testing.assert_allclose(together.distributions.logp, alone.distributions.logp, atol=1e-5)
    for layer in (0, 2):
        one, other = together.hidden[layer], alone.hidden[layer]
        assert one.offsets.tolist() == together.distributions.row_offsets.tolist() == other.offsets.tolist()
        np.testing.assert_allclose(one.values, other.values, atol=1e-5)


def test_labels_survive_the_store_and_name_their_tokens(tmp_path: Path) -> None:
    """The form that workers hand over keeps rows, positions and entries."""
    teacher = _open(tmp_path, "bart")
    encoded = Encoded.from_table(_encode(teacher).to_table())
    signal = teacher.answer(encoded, _ask(estimator="topk"))
    ids, again = table_to_signal(signal_to_table(encoded.row_ids, "unit", signal))
    assert ids.equals(encoded.row_ids) and again.distributions is not None and signal.distributions is not None
    np.testing.assert_array_equal(again.distributions.position, signal.distributions.position)
    np.testing.assert_array_equal(again.distributions.ids, signal.distributions.ids)


def test_nothing_is_answered_with_nothing(tmp_path: Path) -> None:
    """A unit of rejected rows has an empty answer."""
    teacher = _open(tmp_path, "t5")
    found = teacher.answer(_encode(teacher).take(np.zeros(0, np.int64)), _ask(layers=(2,), pool="token"))
    assert found.distributions is not None and len(found.distributions.position) == 0
    assert found.hidden[2].values.shape == (0, 32)
