"""Conformance of a task's labels: positions, truth, and answers in the label store."""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from ray_distill.artifacts import SnapshotRef
from ray_distill.labels.format.fitted_arrays import write_fits
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.signal import Signal, Vectors, concat_signals
from ray_distill.labels.model.validity import split_unusable, unusable
from ray_distill.labels.store.label_store import create_or_open
from ray_distill.labels.store.reader import LabelSet, open_label_set
from ray_distill.labels.store.writer import require_signal, write_attempt
from ray_distill.models.core.model import Model
from ray_distill.runtime.labelling.batching import request_of
from ray_distill.runtime.labelling.calibrate_store import fit_store, with_found
from ray_distill.runtime.labelling.identify_teacher import TeacherFacts, make_manifest
from ray_distill.tasks.encoded import Encoded
from ray_distill.teachers.layers import resolve_layers
from ray_distill.teachers.transformers_teacher import TransformersTeacher
from ray_distill.testing.tasks.case import TaskCase

#: Largest change of a log-probability or state by the rows that share a batch, in float32.
BATCH_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class OneShard:
    """A snapshot of the case's rows, in one shard, which is the snapshot itself."""

    row_ids: pa.Array
    name: str = "train-00000.parquet"

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.row_ids)

    @property
    def ref(self) -> SnapshotRef:
        """A reference that leads nowhere."""
        return SnapshotRef(url="memory:conformance", fingerprint="conformance")

    @property
    def shards(self) -> tuple["OneShard"]:
        """The one shard."""
        return (self,)

    def read_shard(self, shard: object, columns: object = None) -> pa.Table:
        """Read the row ids."""
        return pa.table({"row_id": self.row_ids})


def check_positions(case: TaskCase) -> None:
    """Require ascending positions inside each row, and a truth at each.

    Any choice of rows must have the same ones.
    """
    encoded, store = case.encoded, case.task.answers.store
    positions, truth = store.positions(encoded), store.truth(encoded, case.rows)
    assert len(positions.offsets) == encoded.rows + 1, f"positions of {len(positions.offsets) - 1} rows"
    np.testing.assert_array_equal(truth.offsets, positions.offsets, "the truth is at other positions")
    assert len(truth.values) == len(positions.values) == positions.offsets[-1], "not a truth at each position"
    for row in range(encoded.rows):
        own = positions.values[positions.offsets[row] : positions.offsets[row + 1]]
        assert len(own) and (np.diff(own) > 0).all() and own[0] >= 0, f"positions of row {row}: {own}"
        alone = store.positions(encoded.take(np.array([row], np.int64)))
        np.testing.assert_array_equal(alone.values, own)


def check_reduction(case: TaskCase) -> None:
    """Require an answer at each position, as the manifest declares, whatever the batch.

    The answers must be finite.
    """
    encoded, manifest = case.encoded, manifest_of(case)
    signal = answer(case, case.teacher, encoded, manifest)
    found, positions = require_signal(manifest, signal, encoded.rows), case.task.answers.store.positions(encoded)
    np.testing.assert_array_equal(found.row_offsets, positions.offsets, "not an answer at each position")
    np.testing.assert_array_equal(found.position, positions.values, "answers at other positions")
    assert unusable(signal) == {}, f"answers that cannot be stored: {unusable(signal)}"
    alone = [
        answer(case, case.teacher, encoded.take(np.array([row], np.int64)), manifest) for row in range(encoded.rows)
    ]
    assert_near(concat_signals(alone), signal, BATCH_TOLERANCE, "an answer depends on the rows beside it")


def check_storing(case: TaskCase) -> None:
    """Require stored answers to be read back within the error that the store states.

    A row whose answer is not finite must become a quarantined row with a reason.
    """
    with stored(case, broken=1) as found:
        assert found.rejected == 1 and found.labels.rows == found.signal.rows, "not every row is stored or rejected"
        ids, signal = found.labels.read(tuple(found.labels.manifest.hidden))
        assert ids.to_pylist() == found.row_ids.to_pylist(), "row ids differ after reading"
        error = found.labels.manifest.measured["labels"]["max_abs_dlogp"]
        _assert_near(signal.distributions, found.signal.distributions, error + 1e-6, "labels differ after reading")
        for layer, hidden in found.signal.hidden.items():
            stated = found.labels.manifest.measured["hidden"][str(layer)]["relative_squared_error"]
            lost = np.square(hidden.values - signal.hidden[layer].values).sum() / np.square(hidden.values).sum()
            assert lost <= stated + 1e-6, f"states of layer {layer} lost {lost:g}, the store states {stated:g}"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Labels of the case's rows, before they were stored and as a set of a store."""

    row_ids: pa.Array
    signal: Signal
    labels: LabelSet
    rejected: int


@contextmanager
def stored(case: TaskCase, broken: int = 0) -> Iterator[Stored]:
    """Label the rows with the teacher, into a store in a temporary folder.

    The last ``broken`` rows are answered by a copy of the teacher whose weights are all NaN.
    """
    encoded, manifest = case.encoded, manifest_of(case)
    sound, last = np.split(np.arange(encoded.rows, dtype=np.int64), [encoded.rows - broken])
    signals = [answer(case, case.teacher, encoded.take(sound), manifest)]
    if broken:
        signals.append(answer(case, without_weights(case.teacher), encoded.take(last), manifest))
    snapshot = OneShard(row_ids=encoded.row_ids)
    row_ids, signal, rejected = split_unusable(encoded.row_ids, concat_signals(signals))
    assert len(rejected) == broken, f"{broken} answers are not finite, {len(rejected)} rows were rejected"
    assert all(reason for _, reason in rejected), "a rejected row needs a reason"
    with tempfile.TemporaryDirectory(prefix="ray-distill-conformance-") as folder:
        fitted = fit_store(manifest, row_ids, signal)
        store = create_or_open(folder, with_found(manifest, fitted, write_fits(folder, fitted.fits)))
        (unit,) = store.pending(snapshot)
        receipt = write_attempt(folder, store.manifest, unit, row_ids=row_ids, signal=signal, rejected=rejected)
        store.commit([receipt])
        yield Stored(
            row_ids=row_ids,
            signal=signal,
            labels=open_label_set(store.ref(snapshot), snapshot),
            rejected=store.coverage(snapshot).rows_quarantined,
        )


def manifest_of(case: TaskCase) -> StoreManifest:
    """Return the manifest of the campaign's store, whose labels are the case's teacher's."""
    teacher, hidden = TransformersTeacher(model=case.teacher, task=case.task), case.config.labels.hidden.layers
    facts = TeacherFacts(
        fingerprint=teacher.fingerprint,
        space=teacher.space,
        head_url=None,
        tokens=teacher.tokens,
        layers=resolve_layers(hidden, teacher.states) if hidden else (),
        describe=teacher.describe,
    )
    # All rows in one unit, whatever the campaign's units are.
    labels = case.config.labels.model_copy(update={"unit_rows": max(case.rows.num_rows, 1), "unit_bytes": 1 << 40})
    return make_manifest(case.config.model_copy(update={"labels": labels}), facts)


def answer(case: TaskCase, model: Model, encoded: Encoded, manifest: StoreManifest) -> Signal:
    """Return a model's answer in the stored form, to all rows as one batch."""
    return TransformersTeacher(model=model, task=case.task).answer(encoded, request_of(manifest))


def without_weights(model: Model) -> Model:
    """Return a copy of a model whose weights are all NaN."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(torch.nan)
    return replace(model, module=module)


def assert_near(found: Signal, expected: Signal, tolerance: float, what: str) -> None:
    """Require two signals to have the same parts and positions, and numbers within a tolerance."""
    assert found.parts.keys() == expected.parts.keys(), what
    for name, part in expected.parts.items():
        other = found.parts[name]
        if isinstance(part, Vectors):
            assert isinstance(other, Vectors)
            np.testing.assert_array_equal(other.offsets, part.offsets, what)
            np.testing.assert_allclose(other.values, part.values, atol=tolerance, rtol=tolerance, err_msg=what)
        else:
            assert isinstance(other, Distributions)
            _assert_near(other, part, tolerance, what)


def _assert_near(found: Distributions, expected: Distributions, tolerance: float, what: str) -> None:
    for name in ("row_offsets", "position", "entry_offsets", "ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), f"{what}: {name}")
    for name in ("logp", "log_odds"):
        numbers = (getattr(found, name), getattr(expected, name))
        assert (numbers[0] is None) == (numbers[1] is None), f"{what}: {name}"
        if numbers[1] is not None:
            np.testing.assert_allclose(*numbers, atol=tolerance, rtol=tolerance, err_msg=f"{what}: {name}")
