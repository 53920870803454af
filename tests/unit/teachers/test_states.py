"""Language models as teachers: their answers at the tokens that are learnt, without the logits of all tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.config import TeacherConfig
from ray_distill.config.labels import LanguageConfig
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.labels.model.signal import concat_signals
from ray_distill.tasks.encoded import Encoded
from ray_distill.teachers import states
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.reduce import Places, reduce_logits
from ray_distill.teachers.states import reduce_states
from ray_distill.teachers.transformers_teacher import TransformersTeacher, open_teacher
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import write_tiny_causal_model

V = 264
TEXTS = ["a text", "A considerably longer text.", "no"]
CHATS = [
    '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]',
    '[{"role": "assistant", "content": "first"}, {"role": "user", "content": "and?"}]',
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_causal_model(tmp_path_factory.mktemp("models") / "causal", seed=0)


def _open(folder: Path, **settings: Any) -> TransformersTeacher:
    return open_teacher(TeacherConfig(model=str(folder), **settings), task="causal_lm")


def _encode(teacher: TransformersTeacher, texts: list[str]) -> Encoded:
    ids = pa.array([row_id(number) for number in range(len(texts))], rowids.ROW_ID)
    return teacher.task.inputs.encode(pa.table({"row_id": ids, "text": texts}), teacher.model.processor)


def _ask(**values: Any) -> LabelRequest:
    return LabelRequest(**({"estimator": "dense", "k": 5, "temperatures": (1.0, 2.0), "draws": 7, "seed": 3} | values))


def _equal(one: Distributions | None, other: Distributions | None, atol: float = 1e-5) -> None:
    assert one is not None and other is not None and one.classes == other.classes
    for name in ("row_offsets", "position", "entry_offsets", "ids"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in ("logp", "log_tail", "entropy"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=atol, err_msg=name)
    if one.draws is not None and other.draws is not None:
        np.testing.assert_array_equal(one.draws.count, other.draws.count)
        np.testing.assert_allclose(one.draws.log_normaliser, other.draws.log_normaliser, atol=atol)


def test_a_language_teacher_has_a_vocabulary_and_no_classes(folder: Path) -> None:
    """V is the width of the logits; an answer to no rows has it too."""
    teacher = _open(folder)
    assert teacher.space == AnswerSpace(size=V)
    none = teacher.answer(_encode(teacher, []), _ask(layers=(1,)))
    assert none.distributions is not None and none.distributions.classes == V and none.distributions.rows == 0


@pytest.mark.parametrize(("settings", "texts"), [({}, TEXTS), ({"language": LanguageConfig(format="chat")}, CHATS)])
def test_the_answers_are_the_models_at_the_tokens_that_are_learnt(
    folder: Path, settings: dict[str, Any], texts: list[str]
) -> None:
    """Dense log-probabilities and pooled states equal a plain forward pass, row by row and unpadded."""
    teacher = _open(folder, **settings)
    encoded = _encode(teacher, texts)
    signal = teacher.answer(encoded, _ask(layers=(0, 2)))
    answered = teacher.task.answers.store.positions(encoded)
    assert answered is not None and signal.distributions is not None
    for row in range(len(texts)):
        batch = teacher.task.inputs.collate(encoded, np.array([row]))
        with torch.inference_mode():
            plain = teacher.model.module(**batch, output_hidden_states=True)
        at = answered.values[answered.offsets[row] : answered.offsets[row + 1]]
        assert len(at)
        logp_PV = signal.distributions.take([row]).logp.reshape(len(at), V)
        np.testing.assert_allclose(logp_PV, plain.logits[0, at].log_softmax(-1), atol=1e-5)
        for layer in (0, 2):
            mean = plain.hidden_states[layer][0].mean(0)
            np.testing.assert_allclose(signal.hidden[layer].take([row]).values[0], mean, atol=1e-5)


@pytest.mark.parametrize("estimator", ["dense", "topk", "sampled", "hybrid"])
def test_a_head_taken_apart_gives_what_the_whole_model_gives(
    folder: Path, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the head a few positions at a time, or from the logits of all tokens: the same labels, also alone."""
    teacher = _open(folder)
    encoded, request = _encode(teacher, TEXTS), _ask(estimator=estimator)
    whole = _open(folder)
    whole.model.__dict__["apart"] = None
    expected = whole.answer(encoded, request).distributions
    assert teacher.model.apart is not None
    _equal(teacher.answer(encoded, request).distributions, expected)
    monkeypatch.setattr(states, "_LOGITS", 3 * V)
    _equal(teacher.answer(encoded, request).distributions, expected)
    alone = [teacher.answer(encoded.take(np.array([row])), request) for row in range(len(TEXTS))]
    _equal(concat_signals(alone).distributions, expected)


@pytest.mark.parametrize("step", [1, 2, 3, 10])
def test_pieces_of_positions_join_to_the_whole(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without positions, pieces that begin and end within a row, and one that holds none of a row's."""
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(4, 9)
    states_PD = torch.randn(6, 4, generator=generator)
    places = Places(row_offsets=np.array([0, 0, 5, 5, 6]), position=np.array([0, 1, 2, 7, 9, 3], np.int32), logits=None)
    ids = pa.array([row_id(number) for number in range(4)], rowids.ROW_ID)
    monkeypatch.setattr(states, "_LOGITS", 9 * step)
    with torch.no_grad():
        for estimator in ("topk", "sampled"):
            request = _ask(estimator=estimator)
            _equal(
                reduce_states(states_PD, head, request, ids, places=places),
                reduce_logits(head(states_PD), request, ids, places),
                atol=1e-6,
            )


def test_a_model_that_bends_its_logits_answers_as_a_whole(tmp_path: Path) -> None:
    """Where head and body cannot be used apart the teacher labels from the model's own logits."""
    import transformers

    folder = write_tiny_causal_model(tmp_path / "granite", seed=0)
    config = transformers.GraniteConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        logits_scaling=8.0,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    transformers.GraniteForCausalLM(config).save_pretrained(folder)
    teacher = _open(folder)
    assert teacher.model.apart is None
    encoded = _encode(teacher, TEXTS[:1])
    found = teacher.answer(encoded, _ask()).distributions
    with torch.inference_mode():
        plain = teacher.model.module(**teacher.task.inputs.collate(encoded, np.array([0]))).logits[0, :-1]
    assert found is not None
    np.testing.assert_allclose(found.logp.reshape(-1, V), plain.log_softmax(-1), atol=1e-5)
