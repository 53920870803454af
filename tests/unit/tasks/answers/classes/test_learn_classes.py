"""Joining snapshot rows with teacher labels, by row id and by class name."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.config import LossConfig
from ray_distill.errors import ConfigError, TrainingError
from ray_distill.labels.model.distributions import Distributions, Draws
from ray_distill.labels.model.signal import Signal, Vectors, signal_of
from ray_distill.losses import catalogue
from ray_distill.students.arms import arm_by_name, arm_rows
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.data.row_format import remap
from ray_distill.students.objective.validate_losses import check_retained_mass
from ray_distill.students.objective.weighted_losses import to_device
from ray_distill.tasks.answers.classes.learn import ClassFormat
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.models import tiny_text_processor

STORE = ("ant", "bee", "cat")


def row_id(number: int) -> bytes:
    """An id that starts with the number, so that order by id is order by number."""
    return number.to_bytes(1, "big") + b"\0" * 15


def snapshot(numbers: list[int], labels: list[int | None]) -> pa.Table:
    """Rows whose text spells their number in letters."""
    return pa.table(
        {
            "row_id": pa.array([row_id(n) for n in numbers], pa.binary(16)),
            "text": ["a" * (n + 1) for n in numbers],
            "label": pa.array(labels, pa.int32()),
        }
    )


def topk(numbers: list[int], tail: float = 0.1, tokens: list[int] | None = None) -> tuple[pa.Array, Signal]:
    """Top-2 labels: row n's first choice is class n % 3; hidden states hold the row's number."""
    n = len(numbers)
    first = np.array([number % 3 for number in numbers], dtype=np.int32)
    pairs = np.sort(np.stack([first, (first + 1) % 3], -1), -1)
    logp = np.where(pairs == first[:, None], np.log(0.7), np.log(0.3 - tail)).astype(np.float32)
    steps = np.arange(n + 1, dtype=np.int64)
    lengths = np.ones(n, np.int64) if tokens is None else np.array(tokens)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.repeat(np.array(numbers, np.float32), lengths)[:, None] * np.ones((1, 5), np.float32)
    return pa.array([row_id(number) for number in numbers], pa.binary(16)), signal_of(
        distributions=Distributions(
            classes=3,
            temperatures=(1.0, 4.0),
            row_offsets=steps,
            position=np.zeros(n, np.int32),
            entry_offsets=steps * 2,
            ids=pairs.reshape(-1).astype(np.int32),
            logp=logp.reshape(-1),
            log_tail=np.log(np.tile([[tail, 0.8]], (n, 1))).astype(np.float32),
            entropy=np.ones(n, np.float32),
        ),
        hidden={4: Vectors(offsets=offsets, values=values)},
    )


def build(table: pa.Table, labels: tuple[pa.Array, Signal] | None, **changes: Any) -> PositionExamples:
    """A training set of text classification; classes in the store's order unless changed."""
    answers: dict[str, Any] = {
        "task": TASKS["text_classification"],
        "student_classes": STORE,
        "snapshot_classes": STORE,
        "store_classes": STORE,
        **{name: changes.pop(name) for name in (*changes,) if name.endswith("classes") or name == "states"},
    }
    return build_examples(
        table, answers=ClassFormat(**answers), processor=tiny_text_processor(), labels=labels, **changes
    )


def test_rows_meet_their_labels_by_id_whatever_the_order() -> None:
    """Snapshot and label set in different orders: each row gets its own distribution, states and label."""
    found = build(snapshot([5, 1, 3], [2, None, 0]), topk([3, 9, 1, 5]))
    inputs, batch = found.batch(np.array([2, 0, 1]))
    assert [id_.as_py()[0] for id_ in found.encoded.row_ids] == [1, 3, 5]
    assert batch.labels_B.tolist() == [2, -1, 0]
    moved = to_device(batch, torch.device("cpu")).targets
    assert batch.targets is not None and moved is not None
    assert (batch.targets.ids_NK.dtype, moved.ids_NK.dtype) == (torch.int32, torch.int64)
    first = moved.ids_NK.gather(-1, batch.targets.logp_NK.argmax(-1, keepdim=True)).squeeze(-1)
    assert first.tolist() == [5 % 3, 1 % 3, 3 % 3]
    assert batch.hidden[4][:, 0].tolist() == [5, 1, 3]
    assert inputs["attention_mask"].sum(-1).tolist() == [6 + 2, 2 + 2, 4 + 2]
    assert batch.distil_B.all() and batch.example_weight_B.tolist() == [1, 1, 1]


def test_classes_are_remapped_by_name() -> None:
    """A student with the classes in another order gets ids in its own order, of labels and of distributions."""
    found = build(
        snapshot([0, 1, 2], [0, 1, None]),
        topk([0, 1, 2]),
        student_classes=("cat", "ant", "bee"),
        snapshot_classes=("bee", "cat"),
    )
    assert found.truth.values.tolist() == [2, 0, -1]
    targets = found.batch(np.arange(3))[1].targets
    assert targets is not None
    first = targets.ids_NK[np.arange(3), targets.logp_NK.argmax(-1)]
    assert [("cat", "ant", "bee")[i] for i in first] == ["ant", "bee", "cat"]


def test_unknown_classes_name_both_sides() -> None:
    """A class one side lacks is an error with both lists."""
    snapshot_side = "the snapshot has classes the student does not: 'dog'; the student has 'ant', 'bee', 'cat'"
    with pytest.raises(ConfigError, match=snapshot_side):
        build(snapshot([0], [0]), topk([0]), snapshot_classes=("dog",))
    store_side = "the label store has the classes 'ant', 'bee', 'cat', the student 'ant', 'bee'"
    with pytest.raises(ConfigError, match=store_side):
        build(snapshot([0], [None]), topk([0]), student_classes=("ant", "bee"), snapshot_classes=("ant",))


def test_remap_gives_indices_by_name() -> None:
    """Position of each source class among the target's."""
    assert remap(("b", "a"), ("a", "x", "b"), "here").tolist() == [2, 0]


def test_rows_without_teacher_labels_keep_their_true_label(caplog: pytest.LogCaptureFixture) -> None:
    """They are not distilled, their targets are finite, and the log says how many."""
    with caplog.at_level(logging.WARNING):
        found = build(snapshot([0, 1, 2], [1, 1, 1]), topk([0, 2]))
    assert found.distil.tolist() == [True, False, True]
    for rows in (np.array([1]), np.arange(3)):
        targets = found.batch(rows)[1].targets
        assert targets is not None and targets.logp_NK.isfinite().all()
    assert found.batch(np.array([1]))[1].hidden[4].tolist() == [[0, 0, 0, 0, 0]]
    assert "1 of 3 train rows have no teacher labels" in caplog.text


def test_excluded_rows_are_not_distilled() -> None:
    """Rows the teacher was fitted on keep their label and lose their soft label."""
    excluded = pa.array([row_id(2), row_id(77)], pa.binary(16))
    found = build(snapshot([0, 1, 2], [0, 1, 2]), topk([0, 1, 2]), excluded=excluded)
    assert found.distil.tolist() == [True, True, False]
    assert found.truth.values.tolist() == [0, 1, 2]


def test_unusable_rows_are_left_out() -> None:
    """A row the student's processor cannot read is dropped, and the others keep their places."""
    table = snapshot([0, 1, 2], [0, 1, 2]).set_column(1, "text", pa.array(["aa", None, "cc"]))
    found = build(table, topk([0, 1, 2]))
    assert found.rows == 2 and found.truth.values.tolist() == [0, 2]
    assert found.batch(np.array([0, 1]))[1].hidden[4][:, 0].tolist() == [0, 2]


def test_an_empty_split_is_an_error() -> None:
    """No usable row is told with the split's name."""
    with pytest.raises(TrainingError, match="the train split has no usable row"):
        build(snapshot([], []), topk([0]))


def test_padding_rows_get_no_weight() -> None:
    """Rows that only fill a micro-batch have weight 0."""
    found = build(snapshot([0, 1], [0, 1]), topk([0, 1]))
    _, batch = found.batch(np.array([1, 0]), np.array([True, False]))
    assert batch.example_weight_B.tolist() == [1, 0]


def test_states_one_a_token_are_padded_with_a_mask() -> None:
    """Equal tokenisation: states [B, L, D] and which of them are real."""
    found = build(snapshot([0, 2], [None, None]), topk([0, 2], tokens=[3, 5]), states="sequence")
    _, batch = found.batch(np.array([0, 1]))
    assert batch.hidden[4].shape == (2, 5, 5)
    assert batch.hidden_mask_BL is not None and batch.hidden_mask_BL.sum(-1).tolist() == [3, 5]


def test_another_tokenisation_refuses_states_one_a_token() -> None:
    """Unequal lengths name a row and both lengths."""
    lengths = r"has 4 states in teacher layer 4 and 5 tokens in the student \(1 such rows\)"
    with pytest.raises(ConfigError, match=lengths):
        build(snapshot([0, 2], [None, None]), topk([0, 2], tokens=[3, 4]), states="sequence")


def test_too_little_retained_mass_is_refused() -> None:
    """At T = 4 the stored classes hold 0.2 of the mass: not enough to teach from."""
    found = build(snapshot([0, 1], [0, 1]), topk([0, 1]))
    check_retained_mass(found, np.arange(2), 1.0)
    with pytest.raises(ConfigError, match=r"temperature 4: the stored classes have only 0\.20"):
        check_retained_mass(found, np.arange(2), 4.0)


def drawn(numbers: list[int]) -> tuple[pa.Array, Signal]:
    """The labels of `topk`, the first class drawn 3 times of 4, the second exact."""
    ids, signal = topk(numbers)
    draws = Draws(
        number=4,
        exponent=0.5,
        count=np.tile(np.array([3, 0], np.int32), len(numbers)),
        log_normaliser=np.array(numbers, np.float32),
    )
    return ids, signal.with_parts({"distributions": replace(signal.distributions, draws=draws)})


def test_draws_reach_the_losses() -> None:
    """Counts and normalisers follow their row; rows without labels get counts of 0; little mass is no reason."""
    found = build(snapshot([0, 1, 2], [0, 1, 2]), drawn([2, 0]))
    targets = found.batch(np.array([2, 1]))[1].targets
    assert targets is not None and targets.count_NK is not None and targets.log_normaliser_N is not None
    assert targets.count_NK.tolist() == [[3, 0], [0, 0]] and targets.log_normaliser_N.tolist() == [2, 0]
    assert (targets.draws, targets.exponent) == (4, 0.5)
    check_retained_mass(found, np.arange(3), 4.0)


def test_arms_take_the_rows_their_losses_weigh() -> None:
    """True labels only, teacher only, or both."""
    excluded = pa.array([row_id(2)], pa.binary(16))
    found = build(snapshot([0, 1, 2, 3], [0, None, 2, None]), topk([0, 1, 2]), excluded=excluded)
    losses = {name: LossConfig() for name in ("soft", "hard")}
    assert arm_rows("student", losses, found, catalogue.LOSSES).tolist() == [0, 1, 2]
    assert arm_rows("baseline_hard_labels", {"hard": LossConfig()}, found, catalogue.LOSSES).tolist() == [0, 2]
    assert arm_rows(
        "baseline_teacher_hard_labels", {"teacher_hard": LossConfig()}, found, catalogue.LOSSES
    ).tolist() == [0, 1]
    with pytest.raises(TrainingError, match="the arm baseline_hard_labels has no rows: of 1, 0 have true labels"):
        arm_rows(
            "baseline_hard_labels", {"hard": LossConfig()}, build(snapshot([0], [None]), topk([0])), catalogue.LOSSES
        )


def test_unknown_arms_are_named() -> None:
    """The message lists the arms there are."""
    with pytest.raises(ConfigError, match="unknown arm 'teacher'; there are student, baseline_hard_labels"):
        arm_by_name("teacher")


def test_entropies_lie_at_their_rows() -> None:
    """Of rows the teacher has labelled; NaN elsewhere."""
    found = build(snapshot([5, 1, 3], [2, None, 0]), topk([3, 9, 5]))
    assert np.array_equal(found.entropies(), [np.nan, 1.0, 1.0], equal_nan=True)
