"""Rows of the calibration split, run in parts, and the arm that gets its temperature from them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.config import TrainingConfig
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.signal import Signal, signal_of
from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.students.calibration import collect as module
from ray_distill.students.calibration.collect import calibrated, calibrator, collect
from ray_distill.students.calibration.fit import Judged
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import PositionExamples
from ray_distill.tasks.answers.classes import learn
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.models import tiny_text_processor, write_tiny_text_model

TASK, NAMES = "text_classification", ("ant", "bee", "cat")
TRAINING = TrainingConfig(micro_batch=16, global_batch=16)
CLASSES = learn.CONFIDENCE


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model") / "student"
    write_tiny_text_model(folder, NAMES, seed=2, initializer_range=1.0)
    return load_model(str(folder), task=TASK)


def row_id(number: int) -> bytes:
    """An id that starts with the number, so that order by id is order by number."""
    return number.to_bytes(2, "big") + b"\0" * 14


def taught(numbers: list[int], tail: float = 0.1) -> tuple[pa.Array, Signal]:
    """Two of three classes of each row, and the mass of the third."""
    n = len(numbers)
    ids = np.stack([np.arange(n) % 2, np.full(n, 2)], -1).astype(np.int32)
    steps = np.arange(n + 1, dtype=np.int64)
    return pa.array([row_id(number) for number in numbers], pa.binary(16)), signal_of(
        distributions=Distributions(
            classes=3,
            temperatures=(1.0,),
            row_offsets=steps,
            position=np.zeros(n, np.int32),
            entry_offsets=steps * 2,
            ids=ids.reshape(-1),
            logp=np.log(np.tile([0.7, 0.3 - tail], n)).astype(np.float32),
            log_tail=np.full((n, 1), np.log(tail), np.float32),
            entropy=np.ones(n, np.float32),
        )
    )


def unit(
    numbers: list[int], labels: list[int | None], *, teacher: bool = False, count: list[int] | None = None
) -> PositionExamples:
    rows = {
        "row_id": pa.array([row_id(n) for n in numbers], pa.binary(16)),
        "text": ["word " * (1 + n % 7) + "abc"[n % 3] for n in numbers],
        "label": pa.array(labels, pa.int32()),
    }
    answers = learn.ClassFormat(task=TASKS[TASK], student_classes=NAMES, snapshot_classes=NAMES, store_classes=NAMES)
    return build_examples(
        pa.table(rows | ({} if count is None else {"count": count})),
        answers=answers,
        processor=tiny_text_processor(),
        labels=taught(numbers) if teacher else None,
        name="calibration",
        part=True,
    )


def units(*parts: PositionExamples) -> Iterator[PositionExamples]:
    yield from parts


def logits_of(model: Model, *parts: PositionExamples) -> Any:
    with torch.inference_mode():
        found = [forward(model.module, part.batch(np.arange(part.rows))[0]).logits_BV for part in parts]
    return torch.cat(found).numpy()


def collected(model: Model, *parts: PositionExamples, training: TrainingConfig = TRAINING) -> Judged | None:
    return collect(model, partial(units, *parts), CLASSES, training)


@pytest.mark.parametrize("training", [TRAINING, TrainingConfig(micro_batch=7, global_batch=14, micro_tokens=40)])
def test_true_labels_decide_where_there_are_enough(model: Model, training: TrainingConfig) -> None:
    """Whatever the size of a pass: each row once, with its class and its count; unknown rows are left out."""
    first = unit(list(range(40)), [n % 3 for n in range(40)], count=[1 + n % 2 for n in range(40)])
    second = unit(list(range(40, 70)), [None if n % 3 == 0 else 1 for n in range(40, 70)], teacher=True)
    found = collected(model, first, second, training=training)
    assert found is not None and found.against == "true labels" and len(found.weight_N) == 60
    known = np.concatenate([first.labelled, second.labelled])
    expected = logits_of(model, first, second)[known]
    order, other = np.lexsort(found.logits_NV.T.round(3)), np.lexsort(expected.T.round(3))
    assert np.allclose(found.logits_NV[order], expected[other], atol=1e-4)
    truth = np.concatenate([first.truth.values, second.truth.values])[known]
    assert np.bincount(found.target_NV.argmax(axis=1), minlength=3).tolist() == np.bincount(truth).tolist()
    assert found.weight_N.sum() == 60 + 20


def test_the_teacher_decides_where_labels_are_few(model: Model) -> None:
    """Its mass outside the stored classes is shared as the model shares it."""
    data = unit(list(range(60)), [0] * 49 + [None] * 11, teacher=True)
    found = collected(model, data)
    assert found is not None and found.against == "teacher" and len(found.weight_N) == 60
    assert np.allclose(found.target_NV.sum(axis=1), 1, atol=1e-6)
    stored = np.stack([np.arange(60) % 2, np.full(60, 2)], -1)
    assert np.allclose(np.sort(found.target_NV, axis=1)[:, ::-1], [0.7, 0.2, 0.1], atol=1e-6)
    assert np.allclose(np.take_along_axis(found.target_NV, stored, 1), [0.7, 0.2], atol=1e-6)


def test_fewer_rows_than_needed_give_nothing(model: Model) -> None:
    """Neither side has labelled fifty."""
    data = unit(list(range(49)), [1] * 49, teacher=True)
    assert collected(model, data) is None and collected(model) is None
    same, found = calibrated(model, partial(units, data), CLASSES, TRAINING)
    assert same is model and (found.temperature, found.where) == (1.0, "") and "fewer than 50" in found.reason


def test_no_more_rows_are_read_than_one_number_needs(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units behind the limit are not opened."""
    monkeypatch.setattr(module, "MOST_ROWS", 70)

    def endless() -> Iterator[PositionExamples]:
        yield unit(list(range(40)), [0] * 40)
        yield unit(list(range(40, 80)), [1] * 40)
        raise AssertionError("a third unit is opened")

    found = collect(model, endless, CLASSES, TRAINING)
    assert found is not None and len(found.weight_N) == 70


def test_a_temperature_is_part_of_the_weights(model: Model, tmp_path: Path) -> None:
    """The model's logits are divided by it, and its facts state where it is."""
    before = logits_of(model, unit(list(range(200)), [0] * 200))
    labels = [int(n) if i % 5 else i % 3 for i, n in enumerate(before.argmax(axis=1))]
    data = unit(list(range(200)), labels)
    fresh = load_model(model.url, task=TASK)
    other = TrainingConfig(micro_batch=7, global_batch=14, micro_tokens=40)
    _, again = calibrated(load_model(model.url, task=TASK), partial(units, data), CLASSES, other)
    done, found = calibrated(fresh, partial(units, data), CLASSES, TRAINING)
    assert again.temperature == found.temperature, "whatever the size of a pass"
    assert (again.nll_after, again.ece_after) == pytest.approx((found.nll_after, found.ece_after), abs=1e-5)
    assert found.temperature > 1.5 and found.where == "head" and done.decision == {}
    assert np.allclose(logits_of(done, data) * found.temperature, before, rtol=1e-5, atol=1e-5)
    assert found.in_words.startswith(f"temperature {found.temperature:g} on 200 rows of the calibration split")


def test_arms_keep_their_probabilities_where_that_is_configured(model: Model) -> None:
    """Or where the family has none to calibrate."""
    assert calibrator("none", CLASSES, units, TRAINING) is None
    assert calibrator("temperature", None, units, TRAINING) is None
    assert calibrator("temperature", CLASSES, units, TRAINING) is not None
