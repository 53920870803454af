"""Rows of label sets in training: classes by name, unknown sets, the validator, and what is fitted to decide."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.config import LossConfig, SamplingConfig, TrainingConfig
from ray_distill.errors import ConfigError, TrainingError
from ray_distill.labels.model.distributions import bernoulli
from ray_distill.labels.model.signal import Signal, signal_of
from ray_distill.losses.base import LossBatch, StudentOutput, label_weight
from ray_distill.losses.binary import BinarySoft
from ray_distill.models.core.forward import forward
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.students.arms import arm_rows
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.data.resampling import resampled
from ray_distill.students.loop.validation import MIN_LABELLED
from ray_distill.students.objective.weighted_losses import build_terms
from ray_distill.tasks.answers.labels import learn
from ray_distill.tasks.answers.labels.learn import ByTeacher, ByTruth, LabelFormat
from ray_distill.tasks.answers.labels.thresholds import fit_thresholds
from ray_distill.tasks.catalogue import get_task
from ray_distill.testing.models import tiny_text_processor, write_tiny_text_model

STORE = ("ant", "bee", "cat")
TASK = "text_multi_label"
TRAINING = TrainingConfig(micro_batch=7, global_batch=14)
Labels = tuple[pa.Array, Signal]


def row_id(number: int) -> bytes:
    """An id that starts with the number, so that order by id is order by number."""
    return number.to_bytes(2, "big") + b"\0" * 14


def snapshot(numbers: list[int], labels: list[list[int] | None]) -> pa.Table:
    return pa.table(
        {
            "row_id": pa.array([row_id(n) for n in numbers], pa.binary(16)),
            "text": [f"{n} " + "a" * (n % 5 + 1) for n in numbers],
            "label": pa.array(labels, pa.list_(pa.int32())),
        }
    )


def taught(numbers: list[int], log_odds: Any) -> Labels:
    """Labels of rows with the given log-odds, in the store's order."""
    offsets = np.arange(len(numbers) + 1, dtype=np.int64)
    z_RV = np.asarray(log_odds, np.float32).reshape(len(numbers), len(STORE))
    ids = pa.array([row_id(n) for n in numbers], pa.binary(16))
    return ids, signal_of(distributions=bernoulli(z_RV, row_offsets=offsets))


def build(table: pa.Table, labels: Labels | None, **changes: Any) -> PositionExamples:
    """A training set; classes in the store's order unless changed."""
    answers: dict[str, Any] = {
        "task": get_task(TASK),
        "student_classes": STORE,
        "snapshot_classes": STORE,
        "store_classes": STORE,
        **{name: changes.pop(name) for name in (*changes,) if name.endswith("classes")},
    }
    return build_examples(
        table, answers=LabelFormat(**answers), processor=tiny_text_processor(), labels=labels, **changes
    )


def test_sets_meet_their_rows_and_classes_by_name() -> None:
    """Student, store and snapshot in three orders; an empty set is known, and a class that the snapshot does not have
    applies nowhere."""
    found = build(
        snapshot([5, 1, 3], [[0, 1], None, []]),
        taught([3, 5], [[1, 2, 3], [4, 5, 6]]),
        student_classes=("cat", "ant", "bee"),
        snapshot_classes=("bee", "cat"),
    )
    assert found.truth.values.tolist() == [[-1, -1, -1], [0, 0, 0], [1, 0, 1]]
    assert found.truth.values.dtype == np.int8 and found.labelled.tolist() == [False, True, True]
    batch = found.batch(np.arange(3))[1]
    assert label_weight(batch).tolist() == [0, 1, 1] and batch.distil_B.tolist() == [False, True, True]
    assert batch.targets is not None and batch.targets.log_odds_NK is not None
    by_class = torch.zeros(3, 3).scatter_(-1, batch.targets.ids_NK.long(), batch.targets.log_odds_NK)
    assert by_class.tolist() == [[0, 0, 0], [3, 1, 2], [6, 4, 5]]


def test_a_snapshot_without_labels_is_unknown() -> None:
    """Every line is -1."""
    table = snapshot([1, 2], [None, None]).drop_columns("label")
    assert build(table, taught([1, 2], np.zeros((2, 3)))).truth.values.tolist() == [[-1] * 3] * 2


def test_unknown_classes_name_both_sides() -> None:
    """A class one side lacks is an error with both lists."""
    with pytest.raises(ConfigError, match="the snapshot has classes the student does not: 'dog'"):
        build(snapshot([0], [[0]]), taught([0], [[0, 0, 0]]), snapshot_classes=("dog",))
    with pytest.raises(ConfigError, match="the label store has the classes 'ant', 'bee', 'cat', the student 'ant'"):
        build(snapshot([0], [None]), taught([0], [[0, 0, 0]]), student_classes=("ant",), snapshot_classes=())


def test_the_losses_are_of_sets_by_the_usual_names() -> None:
    """Arms and configurations name them as everywhere; any temperature is fine, because nothing is in a tail."""
    soft, plain = LossConfig.model_validate({"temperature": 1.7}), LossConfig()
    losses = {"soft": soft, "hard": plain, "teacher_hard": plain}
    terms = build_terms(losses, kinds=learn.LOSSES, steps=1, temperatures=(1.0,), layers={})
    assert [type(term.loss).__name__ for term in terms] == ["BinarySoft", "BinaryHard", "BinaryTeacherHard"]
    found = build(snapshot([1, 2, 3], [[], None, [1]]), taught([1, 2], np.zeros((2, 3))))
    assert arm_rows("baseline_hard_labels", {"hard": plain}, found, learn.LOSSES).tolist() == [0, 2]
    teacher_hard = {"teacher_hard": plain}
    assert arm_rows("baseline_teacher_hard_labels", teacher_hard, found, learn.LOSSES).tolist() == [0, 1]
    assert arm_rows("student", {"soft": plain, "hard": plain}, found, learn.LOSSES).tolist() == [0, 1, 2]
    output = StudentOutput(logits_BV=torch.zeros(3, 3))
    assert all(bool(term.loss(output, found.batch(np.arange(3))[1]).isfinite()) for term in terms)


def test_rows_are_sampled_by_their_rarest_label() -> None:
    """True sets, else the teacher's decisions; rows without any label are a class, rows of unknown set have none."""
    labels: list[list[int] | None] = [[0], [0, 1], [], None, None]
    table = snapshot([1, 2, 3, 4, 5], labels)
    found = build(table, taught([1, 4], [[9, 9, 9], [1, -1, 0]]), student_classes=STORE[::-1])
    classes = found.sampling_classes()
    rows = [classes.values[classes.offsets[r] : classes.offsets[r + 1]].tolist() for r in range(5)]
    assert rows == [[2], [1, 2], [3], [0, 2], []]
    many = build(snapshot(list(range(100)), [[0]] * 80 + [[0, 1]] * 10 + [[]] * 10), None)
    drawn = resampled(np.arange(100), many, SamplingConfig.model_validate({"by": "class", "power": 1.0}), seed=3)
    # Weights: 80 rows of 1/90, 10 of 1/10 and 10 of 1/10.
    counts = [(drawn < 80).sum(), ((drawn >= 80) & (drawn < 90)).sum(), (drawn >= 90).sum()]
    assert counts == pytest.approx([100 * 80 / 90 / (80 / 90 + 2), 100 / (80 / 90 + 2), 100 / (80 / 90 + 2)], abs=1)


def batches(found: PositionExamples, sizes: list[int]) -> list[LossBatch]:
    ends = np.cumsum(sizes)
    return [found.batch(np.arange(end - size, end))[1] for end, size in zip(ends, sizes, strict=True)]


def scored(measure: ByTruth | ByTeacher, logits_NV: torch.Tensor, found: PositionExamples, sizes: list[int]) -> Any:
    totals, start = np.zeros(0), 0
    for batch in batches(found, sizes):
        size = len(batch.labels_B)
        sums = measure.sums(StudentOutput(logits_BV=logits_NV[start : start + size]), batch)
        row = torch.cat([value.double().reshape(-1) for value in sums]).numpy()
        totals, start = row if not len(totals) else totals + row, start + size
    return measure.finish(totals.tolist())


@pytest.mark.parametrize("sizes", [[6], [1, 2, 3]])
def test_true_sets_are_judged_by_nll_a_class_and_macro_f1(sizes: list[int]) -> None:
    """The same in any division; rows of unknown set do not count, nor classes that are nowhere."""
    found = build(snapshot([0, 1, 2, 3, 4, 5], [[0], [0], [], None, [0, 1], []]), None)
    logits = torch.tensor([[3.0, -1, -2], [-1, -1, -3], [1, -2, -4], [9, 9, 9], [2, 3, -1], [-2, -2, -2]])
    score = scored(ByTruth(), logits, found, sizes)
    known = [0, 1, 2, 4, 5]
    truth, p = found.truth.values[known].astype(np.float64), logits[known].double().sigmoid().numpy()
    nll = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()
    assert score.value == pytest.approx(nll, rel=1e-6) == score.metrics["validation_nll"]
    # Class 0: 2 hits of 3 true and 3 decided; class 1: 1 of 1 and 1; class 2 is neither true nor decided.
    assert score.metrics["validation_macro_f1"] == pytest.approx((4 / 6 + 1) / 2)


def test_without_true_sets_the_teacher_judges() -> None:
    """KL a class from it, and the share of rows with its set."""
    z = [[2.0, -1, 0.5], [-2, -2, -2], [1, 1, 1]]
    found = build(snapshot([0, 1, 2], [None] * 3), taught([0, 1, 2], z), student_classes=STORE[::-1])
    logits = torch.tensor([[0.4, -0.1, 1.0], [-1, -1, 3], [1, 1, 1]])
    score = scored(ByTeacher(), logits, found, [2, 1])
    p, q = torch.tensor(z).double().sigmoid(), logits.flip(-1).double().sigmoid()
    kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert score.value == pytest.approx(float(kl), rel=1e-5)
    assert score.metrics == {"validation_kl": score.value, "validation_agreement": pytest.approx(2 / 3)}
    targets = found.batch(np.arange(3))[1].targets
    assert targets is not None
    assert score.value == pytest.approx(float(BinarySoft().divergences(logits, targets).mean()))


def test_the_validator_reads_what_there_is() -> None:
    """True sets of enough rows, else the teacher, else it is an error; the metrics are those that trials may use."""
    many = list(range(MIN_LABELLED))
    judge = learn.validator(build(snapshot(many, [[0]] * len(many)), None))
    assert isinstance(judge.measure, ByTruth)
    some = build(snapshot([*many, 90], [None] * len(many) + [[0]]), taught(many, np.zeros((len(many), 3))))
    assert isinstance(learn.validator(some).measure, ByTeacher) and len(learn.validator(some).rows) == len(many)
    with pytest.raises(TrainingError, match="no teacher labels, so students cannot be compared"):
        learn.validator(build(snapshot([1], [[0]]), None))
    metrics = get_task(TASK).answers.metrics
    for labelled in (0, MIN_LABELLED):
        assert set(learn.measured(labelled)) <= set(learn.OBJECTIVES)
    assert all(objective.metric in metrics.names for objective in learn.OBJECTIVES.values())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model") / "student"
    write_tiny_text_model(folder, STORE, seed=2, initializer_range=1.0, problem_type="multi_label_classification")
    return load_model(str(folder), task=TASK)


def test_thresholds_are_fitted_on_the_validation_split(model: Any) -> None:
    """Of the model's own logits on rows with true sets, whatever the size of a pass; by the names of the classes."""
    rng, numbers = np.random.default_rng(1), list(range(90))
    sets = [None if n % 9 == 0 else np.flatnonzero(rng.random(3) < 0.4).tolist() for n in numbers]
    found = build(snapshot(numbers, sets), None)
    with torch.inference_mode():
        whole = forward(model.module, found.batch(np.arange(90))[0]).logits_BV.numpy()
    known = found.labelled
    expected = fit_thresholds(whole[known], found.truth.values[known] > 0)
    for training in (TRAINING, TrainingConfig(micro_batch=7, global_batch=14, micro_tokens=40)):
        decision = learn.fit_decision(model, found, training)
        assert list(decision) == ["thresholds"] and tuple(decision["thresholds"]) == STORE
        assert list(decision["thresholds"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert (expected != 0.5).any()


def test_thresholds_follow_the_teacher_where_sets_are_unknown(model: Any) -> None:
    """Its decisions at ½, of the rows that it may teach."""
    numbers = list(range(60))
    z = np.random.default_rng(2).normal(size=(60, 3))
    found = build(
        snapshot(numbers, [None] * 60), taught(numbers, z), excluded=pa.array([row_id(0), row_id(7)], pa.binary(16))
    )
    rows = np.flatnonzero(found.distil)
    assert len(rows) == 58
    with torch.inference_mode():
        whole = forward(model.module, found.batch(rows)[0]).logits_BV.numpy()
    decision = learn.fit_decision(model, found, TRAINING)
    expected = fit_thresholds(whole, z[rows] >= 0)
    assert list(decision["thresholds"].values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_decision_of_a_model_is_read_back(model: Any, tmp_path: Path) -> None:
    """As every consumer finds it."""
    save_model(replace(model, decision={"thresholds": {"ant": 0.25}}), tmp_path, card="", metadata={})
    assert load_model(str(tmp_path), task=TASK).decision == {"thresholds": {"ant": 0.25}}
