"""Training rows read unit by unit: the batches of memory, to the bit; read about once an epoch; within a budget."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_distill.config import SnapshotConfig, TrainingConfig
from ray_distill.errors import CorruptStore, SnapshotError
from ray_distill.labels.model import rowids
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.snapshots.take import take_snapshot
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.data.open_data import Opened, open_data
from ray_distill.students.data.streaming import Source, StreamedSet, scan
from ray_distill.students.loop.training_run import TrainingRun, batches_of
from ray_distill.students.process_group import Ranks, current_ranks
from ray_distill.tasks.answers.classes.learn import ClassFormat
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.labels import fake_manifest, label_all
from ray_distill.testing.models import tiny_text_processor
from ray_distill.testing.tensors import assert_equal

CLASSES = tuple(f"class{i}" for i in range(5))
ROWS = 400


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """400 texts, some blank, half with a true label; labels in units of 7, of two snapshots: one has half the rows.

    The rows of the first are labelled already when the second comes, so that its ranges hold rows of several units.
    """
    folder, rng = tmp_path_factory.mktemp("streaming"), np.random.default_rng(0)
    texts = ["  " + " " * n if n % 40 == 3 else "".join(rng.choice(list("abcdefg "), 9)) + f"z{n}" for n in range(ROWS)]
    manifest = fake_manifest(estimator="topk", k=2, layers=(3, 6), unit_rows=7)
    for some in (range(0, ROWS, 2), range(ROWS)):
        lines = [json.dumps({"text": texts[n], "label": CLASSES[n % 5] if n % 4 < 2 else None}) for n in some]
        (folder / "texts.jsonl").write_text("\n".join(lines))
        ref = take_snapshot(
            SnapshotConfig(
                source=str(folder / "texts.jsonl"),
                classes=CLASSES,
                shard_rows=60,
                max_bad_fraction=1,
                splits={"train": 0.7, "validation": 0.2, "calibration": 0.05, "test": 0.05},
            ),
            input_column="text",
            seed=1,
            url=str(folder / "snapshots"),
        )
        snapshot = open_snapshot(ref)
        label_all(str(folder / "labels"), manifest, snapshot)
    build: Any = partial(
        build_examples,
        answers=ClassFormat(
            task=TASKS["text_classification"],
            student_classes=CLASSES[::-1],
            snapshot_classes=snapshot.classes,
            store_classes=CLASSES,
        ),
        processor=tiny_text_processor(),
        excluded=snapshot.read("train")["row_id"].combine_chunks()[:9],
    )
    return Source(
        snapshot=snapshot,
        labels=open_label_set(open_store(str(folder / "labels")).ref(snapshot)),
        layers=(3, 6),
        columns=("row_id", "text", "label"),
        build=build,
    )


def opened(source: Source, **training: Any) -> Opened:
    """Training data in memory, or streamed with room for a handful of units."""
    return open_data(
        [source],
        TrainingConfig.model_validate(
            {"global_batch": 24, "micro_batch": 5, "shuffle_units": 8, "memory_gb": 3e-5, **training}
        ),
        current_ranks(),
    )


def trial_of(data: Opened, **training: Any) -> TrainingRun:
    """As much of a trial as decides batches: every other row of an arm is left out."""
    settings = TrainingConfig.model_validate({"global_batch": 24, "micro_batch": 5, "shuffle_units": 8, **training})
    return TrainingRun(
        name="student",
        url="",
        curve="",
        data=data.train,
        rows=np.arange(0, data.train.rows, 2),
        terms=(),
        steps=20,
        judge=None,
        training=settings,
        rate=1.0,
        seed=3,
        plan={},
        units=data.units,
    )  # type: ignore[arg-type]


def test_batches_are_those_of_memory_to_the_bit(source: Source) -> None:
    """Every micro-batch of two ranks over more than two epochs, unusable, excluded and reused rows among them."""
    memory, streamed = opened(source, stream="never"), opened(source, stream="always")
    assert isinstance(memory.train, PositionExamples) and isinstance(streamed.train, StreamedSet)
    assert memory.units is not None and memory.units.tolist() == streamed.units.tolist()  # type: ignore[union-attr]
    assert memory.train.rows < ROWS * 0.75 and 0 < memory.train.distil.sum() < memory.train.rows
    for name in ("rows", "drawn", "widths"):
        assert getattr(streamed.train, name) == getattr(memory.train, name)
    for name in ("labelled", "distil"):
        assert np.array_equal(getattr(streamed.train, name), getattr(memory.train, name))
    assert trial_of(memory).order.plan.lanes > 1
    for rank in (0, 1):
        ranks, ours, theirs = Ranks(rank=rank, world=2), trial_of(streamed), trial_of(memory)
        for step in range(20):
            assert_equal(tuple(batches_of(ours, ranks, step)), tuple(batches_of(theirs, ranks, step)))
    streamed.train.close()


def test_the_calibration_split_is_read_unit_by_unit(source: Source) -> None:
    """Its usable rows alone, each once with its labels and without states; the same beside streamed rows."""
    memory, streamed = opened(source, stream="never"), opened(source, stream="always")
    parts = list(memory.calibration())
    assert len(parts) == len(source.units("calibration")) > 1 and all(part.rows <= 7 for part in parts)
    ids = np.concatenate([rowids.to_numpy(part.encoded.row_ids) for part in parts])
    table = source.snapshot.read("calibration", ["row_id", "text"])
    usable = [text.strip() != "" for text in table["text"].to_pylist()]
    assert sorted(ids) == sorted(rowids.to_numpy(table["row_id"])[usable])
    assert all(part.distributions is not None and not part.hidden for part in parts)
    for one, other in zip(parts, streamed.calibration(), strict=True):
        assert_equal(one.batch(np.arange(one.rows)), other.batch(np.arange(other.rows)))
    streamed.train.close()


def test_each_unit_is_read_about_once_an_epoch(source: Source) -> None:
    """With room for the units that are open, no more is read than cuts between lanes cost, plus what is read ahead."""
    data = opened(source, stream="always", memory_gb=1e-3)
    assert isinstance(data.train, StreamedSet) and data.units is not None
    trial, units = trial_of(data), len(data.units) - 1
    before = data.train.loads
    for step in range(trial.order.plan.steps):
        batches_of(trial, current_ranks(), step)
    assert data.train.loads - before <= 1.2 * units
    data.train.close()


def test_memory_decides(source: Source) -> None:
    """auto: in memory where it fits, streamed where it does not; either way the same validation rows."""
    small, large = opened(source, memory_gb=3e-5), opened(source, memory_gb=1)
    assert isinstance(small.train, StreamedSet) and isinstance(large.train, PositionExamples)
    assert small.validation.encoded.row_ids.equals(large.validation.encoded.row_ids)
    assert_equal(small.validation.batch(np.arange(9)), large.validation.batch(np.arange(9)))
    small.train.close()


def test_mass_is_measured_on_the_labels_themselves(source: Source) -> None:
    """Over few units it is exactly that of memory."""
    memory, streamed = opened(source, stream="never"), opened(source, stream="always")
    assert memory.units is not None
    rows = np.flatnonzero(memory.train.distil)
    rows = rows[rows < memory.units[12]]
    assert streamed.train.retained_mass(2.0, rows) == pytest.approx(memory.train.retained_mass(2.0, rows), rel=1e-6)
    streamed.train.close()


def test_little_room_is_told(source: Source, caplog: pytest.LogCaptureFixture) -> None:
    """The message has both numbers, and what to change."""
    opened(source, stream="always", memory_gb=1e-6).train.close()
    assert "units will be read several times an epoch; raise it, or lower shuffle_units" in caplog.text


def test_a_damaged_shard_ends_training_with_its_name(source: Source, tmp_path: Path) -> None:
    """Of the snapshot before the first step, of the labels when the order comes to it."""
    data = opened(source, stream="always")
    unit = source.labels.units[0]
    victim = next(Path(source.labels.ref.store, "distributions", unit.unit).glob("*.parquet"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1] + b"x")
    try:
        with pytest.raises(CorruptStore, match=str(victim)):
            data.train.batch(np.arange(data.train.rows))
    finally:
        victim.write_bytes(whole)
        data.train.close()
    shard = next(shard for shard in source.snapshot.shards if shard.split == "train")
    victim = Path(source.snapshot.ref.url, shard.name)
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1] + b"x")
    try:
        with pytest.raises(SnapshotError, match=shard.name):
            opened(source, stream="always")
        with pytest.raises(SnapshotError, match=shard.name):  # on a rank that has not read it, too
            scan([source], source.units("train"), _Told(rank=1, world=2))
    finally:
        victim.write_bytes(whole)


class _Told(Ranks):
    """The second of two ranks, in one process with the first, who finds the first shard damaged."""

    def gather(self, value: Any) -> list[Any]:
        assert not isinstance(value, Exception)
        return [SnapshotError("data/train-00000.parquet is damaged"), value]


def test_rows_are_read_from_the_units_that_hold_them(source: Source) -> None:
    """Any choice of rows, and no others: ids and signal are those of the whole set."""
    ids, signal = source.labels.read(layers=(6,))
    wanted = rowids.to_numpy(ids)[[5, 130, 17, 17 + 1]]
    found, part = source.labels.read_rows(np.append(wanted, [b"\1" * 16]), layers=(6,))
    at = [ids.to_pylist().index(row) for row in found.to_pylist()]
    assert sorted(at) == [5, 17, 18, 130]
    expected = signal.take(at)
    assert part.distributions is not None and expected.distributions is not None
    assert np.array_equal(part.distributions.logp, expected.distributions.logp)
    assert np.array_equal(part.hidden[6].values, expected.hidden[6].values)
    assert source.labels.labelled(np.append(wanted[:1], [b"\1" * 16])).tolist() == wanted[:1].tolist()
    assert source.labels.read_rows(wanted[:0], layers=(6,))[1].hidden[6].rows == 0
