"""Teachers: what they answer, what they refuse, and the fakes that stand in for them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.config import TeacherConfig
from ray_distill.errors import TeacherRefused
from ray_distill.labels.format.hidden_states import bases, basis_name, fit_basis, mean_name, project
from ray_distill.models.core.row_classes import named
from ray_distill.tasks.encoded import Encoded
from ray_distill.teachers.base import LabelRequest, Teacher
from ray_distill.teachers.layers import resolve_layers
from ray_distill.teachers.transformers_teacher import TransformersTeacher, open_teacher
from ray_distill.testing.models import FakeTeacher, ThrowingTeacher, write_tiny_image_model, write_tiny_text_model

CLASSES = ("ham", "spam", "other")
TEXTS = ["a", "a b c d e", "the quick brown fox", "z"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TransformersTeacher:
    folder = write_tiny_text_model(tmp_path_factory.mktemp("models") / "text", CLASSES, seed=0)
    return open_teacher(TeacherConfig(model=str(folder)), task="text_classification")


def _encode(teacher: TransformersTeacher, texts: list[str]) -> Encoded:
    ids = pa.array([bytes([i]) * 16 for i in range(len(texts))], pa.binary(16))
    return teacher.task.inputs.encode(pa.table({"row_id": ids, "text": texts}), teacher.model.processor)


def _ask(**values: object) -> LabelRequest:
    return LabelRequest(**({"estimator": "dense", "k": 2, "temperatures": (1.0, 2.0)} | values))  # type: ignore[arg-type]


def test_a_teacher_answers_what_its_model_says(teacher: TransformersTeacher) -> None:
    """Distributions and pooled states equal a plain forward pass, row by row and unpadded."""
    encoded = _encode(teacher, TEXTS)
    signal = teacher.answer(encoded, _ask(layers=(0, 2)))
    assert signal.distributions is not None and signal.distributions.rows == len(TEXTS)
    for row in range(len(TEXTS)):
        batch = teacher.task.inputs.collate(encoded, np.array([row]))
        with torch.inference_mode():
            plain = teacher.model.module(**batch, output_hidden_states=True)
        logp = signal.distributions.take([row]).logp
        np.testing.assert_allclose(logp, plain.logits.log_softmax(-1)[0], atol=1e-5)
        for layer in (0, 2):
            mean = plain.hidden_states[layer][0].mean(0)
            np.testing.assert_allclose(signal.hidden[layer].take([row]).values[0], mean, atol=1e-5)


def test_token_states_are_those_of_real_tokens(teacher: TransformersTeacher) -> None:
    """One vector a token, none for padding, float32 whatever the pooling."""
    encoded = _encode(teacher, TEXTS)
    hidden = teacher.answer(encoded, _ask(layers=(1,), pool="token")).hidden[1]
    assert hidden.offsets.tolist() == encoded.features["input_ids"].offsets.tolist()
    assert hidden.values.shape == (hidden.offsets[-1], 32) and hidden.values.dtype == np.float32
    for pool, place in (("cls", 0), ("last", -1)):
        pooled = teacher.answer(encoded, _ask(layers=(1,), pool=pool)).hidden[1]
        for row in range(len(TEXTS)):
            assert np.array_equal(pooled.take([row]).values[0], hidden.take([row]).values[place])


def test_no_rows_have_an_empty_answer(teacher: TransformersTeacher) -> None:
    """Of the right classes and widths, without running the model."""
    signal = teacher.answer(_encode(teacher, []), _ask(layers=(2,)))
    assert signal.distributions is not None and signal.distributions.rows == 0
    assert signal.hidden[2].values.shape == (0, 32)


def test_a_broken_row_is_returned_as_it_is(teacher: TransformersTeacher) -> None:
    """NaN from the model reaches the writer, which quarantines that row."""
    encoded = _encode(teacher, TEXTS)
    broken = TransformersTeacher(model=teacher.model, task=teacher.task)
    handle = broken.model.module.register_forward_hook(_poison)
    try:
        logp = broken.answer(encoded, _ask()).distributions.logp.reshape(len(TEXTS), -1)  # type: ignore[union-attr]
    finally:
        handle.remove()
    assert np.isnan(logp).all(1).tolist() == [False, True, False, False]


def _poison(module: object, inputs: object, output: object) -> None:
    output.logits[1] = torch.nan  # type: ignore[attr-defined]


def test_what_a_teacher_cannot_give_is_refused(teacher: TransformersTeacher, tmp_path: Path) -> None:
    """Unknown layers by name and number, tokens of feature maps, estimators it has not."""
    encoded = _encode(teacher, TEXTS)
    with pytest.raises(TeacherRefused, match="layer 3, but the teacher has 3 hidden states"):
        teacher.answer(encoded, _ask(layers=(3,)))
    with pytest.raises(TeacherRefused, match="hybrid"):
        teacher.answer(encoded, _ask(estimator="hybrid"))
    folder = write_tiny_image_model(tmp_path / "resnet", CLASSES, 0, architecture="resnet")
    resnet = open_teacher(TeacherConfig(model=str(folder)), task="image_classification")
    images = Encoded(
        row_ids=pa.array([b"a" * 16], pa.binary(16)),
        features=resnet.model.processor.images([np.zeros((28, 28, 1), np.uint8)]),
    )
    with pytest.raises(TeacherRefused, match="feature maps and have no cls token"):
        resnet.answer(images, _ask(layers=(1,), pool="cls"))
    places = resnet.answer(images, _ask(layers=(0, 2), pool="token")).hidden
    assert [places[layer].values.shape for layer in (0, 2)] == [(49, 8), (16, 16)]


def test_layers_count_from_the_end_too() -> None:
    """Negative ones are resolved once; out of range and double ones are refused."""
    assert resolve_layers((-1, 0), 4) == (3, 0)
    for layers, count, message in (
        ((4,), 4, "0 \\(the embeddings\\) to 3"),
        ((-5,), 4, "layer -5"),
        ((-1, 3), 4, "twice"),
        ((0,), 0, "it shows none"),
    ):
        with pytest.raises(TeacherRefused, match=message):
            resolve_layers(layers, count)


def test_the_fake_answers_from_row_ids_alone() -> None:
    """In any order and company the same; the throwing one has its name and does nothing else."""
    fake = FakeTeacher(space=named(CLASSES))
    ids = pa.array([bytes([i]) * 16 for i in range(5)], pa.binary(16))
    whole = fake.answer(Encoded(row_ids=ids, features={}), _ask(layers=(1,)))
    part = fake.answer(Encoded(row_ids=ids.take(pa.array([3, 0])), features={}), _ask(layers=(1,)))
    assert whole.distributions is not None and part.distributions is not None
    assert np.array_equal(whole.take([3, 0]).distributions.logp, part.distributions.logp)  # type: ignore[union-attr]
    assert np.array_equal(whole.take([3, 0]).hidden[1].values, part.hidden[1].values)
    throwing: Teacher = ThrowingTeacher(fingerprint=fake.fingerprint, space=fake.space)
    assert throwing.fingerprint == fake.fingerprint
    with pytest.raises(AssertionError, match="had to label 5 rows"):
        throwing.answer(Encoded(row_ids=ids, features={}), _ask())


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_states_are_projected_where_the_teacher_is(teacher: TransformersTeacher, pool: str) -> None:
    """With a store's basis the answer is as wide as that, and its shard is that of states projected when written."""
    encoded = _encode(teacher, TEXTS)
    wide = teacher.answer(encoded, _ask(layers=(1, 2), pool=pool)).hidden
    mean, basis, _ = fit_basis(wide[1].values, rank=2)
    square = np.eye(32, dtype=np.float32)
    fits = {mean_name(1): mean, basis_name(1): basis, mean_name(2): np.zeros(32, np.float32), basis_name(2): square}
    assert set(bases((1, 2), fits)) == {1}, "of a square basis the width would not tell what was projected"
    found = teacher.answer(encoded, _ask(layers=(1, 2), pool=pool, bases=bases((1, 2), fits))).hidden
    assert found[1].values.shape == (len(wide[1].values), 2) and found[2].values.shape == wide[2].values.shape
    np.testing.assert_allclose(found[1].values, project(wide[1].values, 1, fits), atol=1e-5)
    assert project(found[1].values, 1, fits) is found[1].values
    nothing = teacher.answer(_encode(teacher, []), _ask(layers=(1,), bases=bases((1,), fits))).hidden
    assert nothing[1].values.shape == (0, 2)
