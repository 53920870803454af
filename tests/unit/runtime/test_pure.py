"""Small functions of the runtime that need no cluster: they are imported and called."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from ray_distill.artifacts import Decision, EvalReport, LabelSetRef, ModelReport, SnapshotRef, StudentRef, Verdict
from ray_distill.errors import ClusterError, ModelError, PromotionError, StoreMismatch
from ray_distill.evaluation.measures.efficiency import Efficiency
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.promotion.chain import read_chain, record_decision
from ray_distill.runtime.core.connection import explain
from ray_distill.runtime.labelling.batching import by_length
from ray_distill.runtime.stages.promote import judged_against
from ray_distill.tasks.answers.classes.store import class_probabilities
from ray_distill.tasks.encoded import Encoded
from ray_distill.testing.labels import fake_manifest, fake_teacher, row_id

IDS = pa.array([row_id(number) for number in range(6)], pa.binary(16))


def _encoded(lengths: list[int], order: list[int]) -> Encoded:
    offsets = np.concatenate([[0], np.cumsum(np.array(lengths)[order])])
    values = np.zeros(offsets[-1], np.int32)
    return Encoded(
        row_ids=IDS.take(pa.array(order)), features={"input_ids": RaggedArray(values=values, offsets=offsets)}
    )


def test_batches_are_ordered_by_length_then_id_whatever_order_rows_come_in() -> None:
    """The rows of a unit form the same sequence of ids however the unit was put together."""
    lengths = [3, 1, 3, 2, 1, 3]
    orders = [list(range(6)), [5, 4, 3, 2, 1, 0], [2, 0, 5, 3, 1, 4]]
    found = []
    for order in orders:
        encoded = _encoded(lengths, order)
        rows = by_length(encoded)
        assert sorted(rows) == list(range(6))
        assert [lengths[order[row]] for row in rows] == sorted(lengths)
        found.append(encoded.row_ids.take(pa.array(rows)).to_pylist())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_stored_distributions_become_full_ones(k: int) -> None:
    """Each row sums to 1, stored classes keep their probability, the others share the tail evenly."""
    full = fake_teacher(IDS, fake_manifest()).distributions
    stored = fake_teacher(IDS, fake_manifest(estimator="topk", k=k)).distributions
    assert full is not None
    assert stored is not None
    exact_NV, found_NV = class_probabilities(full), class_probabilities(stored)
    np.testing.assert_allclose(exact_NV.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(found_NV.sum(1), 1, atol=1e-6)
    for row, ids in enumerate(np.split(stored.ids, len(IDS))):
        np.testing.assert_allclose(found_NV[row, ids], exact_NV[row, ids], rtol=1e-6)
        outside = np.delete(found_NV[row], ids)
        assert len(set(outside)) <= 1
    _same_as(class_probabilities(_reordered(full)), exact_NV)


def _reordered(full: Distributions) -> Distributions:
    return full.take(np.arange(full.rows, dtype=np.int64))


def _same_as(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(found, expected)


def _student(name: str) -> StudentRef:
    snapshot = SnapshotRef(url="u", fingerprint="h")
    labels = LabelSetRef(store="l", fingerprint="g", log_length=1, log_digest="d", snapshot=snapshot)
    return StudentRef(url=f"models/{name}", fingerprint=name * 8, arm="student", labels=labels)


def _report(student: str, champion: str | None) -> EvalReport:
    cost = Efficiency(parameters=1, bytes_on_disk=1, latency_ms_p50=1, latency_ms_p95=1, examples_per_second=1)
    arms = {"student": student} | ({} if champion is None else {"champion": champion})
    models = {
        arm: ModelReport(name=arm, url=_student(name).url, metrics={}, efficiency=cost) for arm, name in arms.items()
    }
    return EvalReport(url="r", fingerprint="f", task="text_classification", student=_student(student), models=models)


def test_a_report_is_judged_against_the_champion_it_compared_with(tmp_path: Path) -> None:
    """Without a champion in the report it is None; else the chain's own reference, even when it was replaced since."""
    against = None
    for name in ("a", "b"):
        decision = Decision(verdict=Verdict.PROMOTE, reasons=("good",), student=_student(name), report_fingerprint=name)
        record_decision(str(tmp_path), decision, against=against, who="ann", time=datetime.now(UTC))
        against = _student(name)
    chain = read_chain(str(tmp_path))
    assert judged_against(_report("c", None), chain) is None
    assert judged_against(_report("c", "b"), chain) == _student("b")
    assert judged_against(_report("c", "a"), chain) == _student("a")
    with pytest.raises(PromotionError, match="models/x, which is not in the decision chain"):
        judged_against(_report("c", "x"), chain)


def _from_ray(cause: Exception) -> Exception:
    """What ``ray.get`` raises for a task that raised ``cause``: an error of both classes, its text a traceback."""
    return ray.exceptions.RayTaskError("task", "Traceback (most recent call last):\n  …", cause).as_instanceof_cause()


def test_an_error_of_ours_comes_out_of_ray_as_it_was() -> None:
    """Its class is the plain one and its text has no trace of Ray, directly or wrapped several times over."""
    found = explain(_from_ray(ModelError("no weights")), "opening the teacher")
    assert type(found) is ModelError
    assert str(found) == "no weights"
    outer = RuntimeError("a stage failed")
    outer.__cause__ = _from_ray(StoreMismatch("k: 3 here, 4 there"))
    found = explain(_from_ray(outer), "labelling")
    assert type(found) is StoreMismatch
    assert str(found) == "k: 3 here, 4 there"


def test_any_other_error_becomes_one_line_with_what_was_done() -> None:
    """The innermost error's class and last line are named."""
    found = explain(_from_ray(ValueError("first line\nthe reason")), "labelling")
    assert type(found) is ClusterError
    assert str(found) == "labelling failed: ValueError: the reason"
    assert "no message" in str(explain(KeyboardInterrupt(), "training"))


def test_errors_that_name_each_other_end_the_search() -> None:
    """A cycle of causes is walked once."""
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert str(explain(first, "training")) == "training failed: RuntimeError: b"
