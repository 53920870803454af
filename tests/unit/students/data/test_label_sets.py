"""Rows whose truth and labels are a yes or no by class: the same examples, in memory, joined and streamed."""

import json
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from ray_distill.config import LossConfig, SnapshotConfig, TrainingConfig
from ray_distill.labels.format.chunked_distributions import DistributionParts
from ray_distill.labels.model.distributions import Distributions, bernoulli
from ray_distill.labels.model.ragged import RaggedArray, running
from ray_distill.labels.model.signal import Signal, signal_of
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.losses import catalogue
from ray_distill.losses.base import label_weight
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.snapshots.take import take_snapshot
from ray_distill.students.arms import arm_rows
from ray_distill.students.data.answer_format import StateLayout
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.concat import join_sets, size_of, take_rows
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.data.open_data import Opened, open_data
from ray_distill.students.data.resampling import class_weights
from ray_distill.students.data.streaming import Source, StreamedSet
from ray_distill.students.loop.nonfinite_report import _broken_rows
from ray_distill.students.objective.validate_losses import check_retained_mass
from ray_distill.students.objective.weighted_losses import to_device
from ray_distill.students.order.cursor import Index
from ray_distill.students.order.micro_batches import MicroBatch
from ray_distill.students.process_group import current_ranks
from ray_distill.tasks.catalogue import TASKS
from ray_distill.tasks.encoded import Batch, Encoded
from ray_distill.tasks.task import Task
from ray_distill.testing.labels import fake_manifest, label_all
from ray_distill.testing.models import tiny_text_processor
from ray_distill.testing.tensors import assert_equal

V = 4


@dataclass(frozen=True, kw_only=True)
class SetFormat:
    """Rows answered once, by a set of classes; the truth follows from the id. The order of the store's is reversed."""

    task: Task = TASKS["text_classification"]
    classes: int = V
    states: StateLayout = "row"
    truth_columns: tuple[str, ...] = ()

    def positions(self, encoded: Encoded) -> RaggedArray:
        return self.task.answers.store.positions(encoded)

    def truth(self, table: pa.Table, encoded: Encoded) -> RaggedArray:
        return replace(self.positions(encoded), values=truth_of([id_.as_py() for id_ in encoded.row_ids], self.classes))

    def align(self, signal: Signal, stored: Index, encoded: Encoded, answered: RaggedArray) -> Signal:
        if not signal.parts:
            return signal
        found = signal.distributions
        return signal_of(distributions=replace(found, ids=self.classes - 1 - found.ids), hidden=signal.hidden)

    def collate(self, encoded: Encoded, rows: Index) -> tuple[Batch, None]:
        return self.task.inputs.collate(encoded, rows), None

    def sampling_classes(self, examples: PositionExamples) -> RaggedArray:
        known = examples.truth.values > 0
        return RaggedArray(values=np.nonzero(known)[1], offsets=running(known.sum(axis=1)))


def truth_of(ids: list[bytes], classes: int = V) -> npt.NDArray[np.int8]:
    """Bits of an id's first byte; every third row is unknown."""
    bits = np.array([[id_[0] >> (v % 8) & 1 for v in range(classes)] for id_ in ids], np.int8).reshape(-1, classes)
    bits[np.array([id_[0] % 3 == 0 for id_ in ids], np.bool_)] = -1
    return bits


def row_id(number: int) -> bytes:
    return number.to_bytes(1, "big") + b"\0" * 15


def odds(numbers: list[int], classes: int = V) -> Distributions:
    """Row n has the log-odds n, n + 1/4, …"""
    z_PV = np.array(numbers, np.float32)[:, None] + np.arange(classes, dtype=np.float32) / 4
    return bernoulli(z_PV, row_offsets=np.arange(len(numbers) + 1, dtype=np.int64), temperatures=(1.0, 2.0))


def build(numbers: list[int], labelled: list[int], classes: int = V) -> PositionExamples:
    ids = [row_id(n) for n in numbers]
    table = pa.table({"row_id": pa.array(ids, pa.binary(16)), "text": ["a" * (n + 1) for n in numbers]})
    labels = pa.array([row_id(n) for n in labelled], pa.binary(16)), signal_of(distributions=odds(labelled, classes))
    return build_examples(
        table, answers=SetFormat(classes=classes), processor=tiny_text_processor(), labels=labels, part=True
    )


def test_a_batch_has_a_line_of_truth_and_of_log_odds_a_row() -> None:
    """Rows without a known set weigh nothing, and rows without labels get a probability of ½ by class."""
    found = build([1, 2, 3, 5], [5, 2, 1])
    assert found.labelled.tolist() == [True, True, False, True] and found.distil.tolist() == [True, True, False, True]
    batch = to_device(found.batch(np.array([3, 2, 0]))[1], torch.device("cpu"))
    assert batch.labels_B.dtype == torch.int64
    assert batch.labels_B.tolist() == [[1, 0, 1, 0], [-1] * V, [1, 0, 0, 0]]
    assert label_weight(batch).tolist() == [1, 0, 1]
    targets = batch.targets
    assert targets is not None and targets.log_odds_NK is not None
    assert targets.log_odds_NK.tolist() == [[5, 5.25, 5.5, 5.75], [0] * V, [1, 1.25, 1.5, 1.75]]
    assert targets.ids_NK.tolist() == [[3, 2, 1, 0], [0, 1, 2, 3], [3, 2, 1, 0]]
    assert targets.logp_NK.exp()[1].tolist() == pytest.approx([0.5] * V)
    assert torch.allclose(targets.logp_NK, torch.nn.functional.logsigmoid(targets.log_odds_NK))
    assert targets.count_NK is None and targets.classes == V


def test_labels_of_one_class_keep_their_weight() -> None:
    """The same function weighs both shapes."""
    batch = build([1, 2, 3], [1])
    one = replace(batch.batch(np.arange(3))[1], labels_B=torch.tensor([2, -1, 0]))
    assert label_weight(one).tolist() == [1, 0, 1]


def test_arms_take_the_rows_whose_set_is_known_or_that_are_taught() -> None:
    """A set of none is known."""
    found = build([1, 2, 3, 16], [2, 3])
    assert found.batch(np.array([3]))[1].labels_B.tolist() == [[0] * V]
    kinds = catalogue.LOSSES
    assert arm_rows("baseline_hard_labels", {"hard": LossConfig()}, found, kinds).tolist() == [0, 1, 3]
    assert arm_rows("student", {"soft": LossConfig()}, found, kinds).tolist() == [1, 2]
    weight = class_weights(found.sampling_classes(), 1.0)
    assert np.array_equal(weight, [1.0, 1.0, np.nan, np.nan], equal_nan=True)


def test_everything_is_stored_at_every_declared_temperature() -> None:
    """So no temperature leaves too little mass."""
    found = build([1, 2], [1, 2])
    assert found.retained_mass(2.0, np.arange(2)) == 1.0
    check_retained_mass(found, np.arange(2), 2.0)


@pytest.mark.parametrize("classes", [V, 300])
def test_sets_are_taken_and_joined(classes: int) -> None:
    """Of few classes by copying, of many without: the batches are those of one set."""
    whole, rows = build([1, 2, 3, 4, 5], [1, 4, 5], classes), np.array([4, 0, 2, 3])
    parts = [build([1, 2], [1], classes), build([3], [], classes), build([4, 5], [4, 5], classes)]
    joined = join_sets(parts)
    assert isinstance(joined.distributions, DistributionParts) == (classes == 300)
    assert_equal(joined.batch(rows), whole.batch(rows))
    assert_equal(take_rows(whole, rows).batch(np.arange(4)), whole.batch(rows))
    assert size_of(whole) > 5 * classes + 3 * 3 * 4 * classes


def test_a_certain_teacher_is_not_a_broken_one() -> None:
    """If a loss is not finite, rows with a NaN in their log-odds are named; infinite log-odds are certainty."""
    found = build([1, 2], [1, 2])
    assert isinstance(found.distributions, Distributions)
    z = np.array([np.inf, 1, 2, -np.inf, 0, np.nan, 1, 1], np.float32)
    broken = replace(found, distributions=replace(found.distributions, log_odds=z))
    micro = MicroBatch(rows=np.arange(2), real=np.ones(2, np.bool_))
    assert _broken_rows(micro, broken.batch(np.arange(2))[1]).tolist() == [1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Texts with bernoulli labels, in units of 7 rows."""
    folder = tmp_path_factory.mktemp("sets")
    lines = [json.dumps({"text": f"text {n} " + "z" * (n % 9)}) for n in range(200)]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    config = SnapshotConfig(
        source=str(folder / "texts.jsonl"),
        shard_rows=60,
        splits={"train": 0.7, "validation": 0.2, "calibration": 0.05, "test": 0.05},
    )
    ref = take_snapshot(config, input_column="text", seed=1, url=str(folder / "snapshots"))
    snapshot = open_snapshot(ref)
    label_all(str(folder / "labels"), fake_manifest(classes=V, family="bernoulli", unit_rows=7), snapshot)
    return Source(
        snapshot=snapshot,
        labels=open_label_set(open_store(str(folder / "labels")).ref(snapshot)),
        layers=(),
        columns=("row_id", "text"),
        build=partial(build_examples, answers=SetFormat(), processor=tiny_text_processor()),
    )


def opened(source: Source, stream: str) -> Opened:
    training = {"global_batch": 24, "micro_batch": 5, "shuffle_units": 8, "memory_gb": 3e-5, "stream": stream}
    return open_data([source], TrainingConfig.model_validate(training), current_ranks())


def test_streamed_batches_are_those_of_memory(source: Source) -> None:
    """To the bit, with the same facts of every row."""
    memory, streamed = opened(source, "never").train, opened(source, "always").train
    assert isinstance(memory, PositionExamples) and isinstance(streamed, StreamedSet)
    assert 0 < memory.labelled.sum() < memory.rows and np.array_equal(streamed.labelled, memory.labelled)
    rows = np.random.default_rng(0).permutation(memory.rows)[:40]
    streamed.prepare(0, lambda _: rows, 1)
    assert_equal(streamed.batch(rows), memory.batch(rows))
    assert streamed.retained_mass(2.0, rows) == 1.0
    streamed.close()
