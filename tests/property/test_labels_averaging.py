"""The mean of several teachers: exact where all classes are stored, exact on what all of them store where not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_distill.errors import StoreMismatch
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.labels.model.signal import Signal, signal_of
from ray_distill.labels.store.ensemble import AveragedLabels, average, averaged_manifest
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import LabelSet, open_label_set
from ray_distill.testing.labels import fake_manifest, fake_snapshot, fake_teacher, label_all, reduce_logits

CLASSES = 6


def dense(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Probabilities ``[R, V]``, in float64."""
    p = np.exp(rng.normal(size=(rows, CLASSES)) * 3)
    return p / p.sum(axis=1, keepdims=True)


def truncated(p_RV: np.ndarray, k: int) -> Distributions:
    """The k likeliest of each row and the mass of the rest; all classes: dense."""
    estimator = "dense" if k == CLASSES else "topk"
    return reduce_logits(
        np.log(p_RV), fake_manifest(estimator=estimator, classes=CLASSES, k=k, temperatures=(1.0,)).distributions
    )


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 5),
    ks=st.lists(st.integers(1, CLASSES), min_size=2, max_size=3),
    data=st.data(),
)
def test_what_all_store_is_the_mean_and_the_rest_is_the_tail(
    seed: int, rows: int, ks: list[int], data: st.DataObject
) -> None:
    """Classes, their probabilities, and the tail's mass, against whole distributions; entropy where nothing is in the
    tail. One more class may be there: the likeliest by what is known, with just that."""
    rng = np.random.default_rng(seed)
    whole_MRV = np.stack([dense(rng, rows) for _ in ks])
    weights_MR = np.array([[data.draw(st.floats(0.1, 3)) for _ in range(rows)] for _ in ks])
    parts = [truncated(p_RV, k) for p_RV, k in zip(whole_MRV, ks, strict=True)]
    mean_RV = (whole_MRV * (weights_MR / weights_MR.sum(axis=0))[:, :, None]).sum(axis=0)
    found = average(parts, weights_MR)
    for row in range(rows):
        entries = slice(found.entry_offsets[row], found.entry_offsets[row + 1])
        stored = [set(part.take([row]).ids.tolist()) for part in parts]
        share_M = weights_MR[:, row] / weights_MR[:, row].sum()
        known_V = sum(
            share * p_RV[row] * np.isin(np.arange(CLASSES), list(own))
            for share, p_RV, own in zip(share_M, whole_MRV, stored, strict=True)
        )
        shared = sorted({*set.intersection(*stored), int(known_V.argmax())})
        assert found.ids[entries].tolist() == shared
        np.testing.assert_allclose(np.exp(found.logp[entries]), known_V[shared], rtol=1e-5)
        both = sorted(set.intersection(*stored))
        np.testing.assert_allclose(known_V[both], mean_RV[row, both], rtol=1e-9)
        rest = 1 - known_V[shared].sum() if len(shared) < CLASSES else 0
        np.testing.assert_allclose(np.exp(found.log_tail[row, 0]), rest, rtol=1e-5, atol=1e-12)
        if len(shared) == CLASSES:
            assert found.entropy[row] == pytest.approx(-(mean_RV[row] * np.log(mean_RV[row])).sum(), rel=1e-5)
        else:
            assert np.isnan(found.entropy[row])


def test_teachers_that_store_nothing_in_common_still_have_a_mean() -> None:
    """The likeliest class of all, and the rest: a finite loss, and the right first choice."""
    whole_MRV = np.array([[[0.6, 0.3, 0.06, 0.02, 0.01, 0.01]], [[0.02, 0.02, 0.03, 0.03, 0.8, 0.1]]])
    found = average([truncated(p_RV, 2) for p_RV in whole_MRV], np.ones((2, 1)))
    assert found.ids.tolist() == [4]
    np.testing.assert_allclose(np.exp([found.logp[0], found.log_tail[0, 0]]), [0.4, 0.6], rtol=1e-6)


def sets(folder: Path, **changes: tuple[range, int]) -> list[LabelSet]:
    """Label sets of numbered rows, by the name of their teacher: which rows, and how far its classes are turned."""
    found = []
    for name, (numbers, turn) in changes.items():
        snapshot, names = fake_snapshot(list(numbers)), tuple(f"class{(i + turn) % 5}" for i in range(5))
        manifest = fake_manifest(teacher=name, temperatures=(1.0, 2.0)).with_distributions(
            space=AnswerSpace(size=len(names), names=names)
        )
        label_all(str(folder / name), manifest, snapshot)
        store = open_store(str(folder / name))
        store.log.refresh()
        found.append(open_label_set(store.ref(snapshot), snapshot))
    return found


def test_sets_are_read_as_one(tmp_path: Path) -> None:
    """The first set's rows in its order, classes matched by name; a row that the other lacks is the first's alone."""
    ours, theirs = sets(tmp_path, ours=(range(12), 0), theirs=(range(4, 20), 2))
    mixed = AveragedLabels([ours, theirs], [1.0, 3.0])
    assert mixed.manifest.distributions.temperatures == (1.0, 2.0) and mixed.manifest.space == ours.manifest.space
    ids, signal = mixed.read()
    assert signal.distributions is not None and ids.equals(ours.read()[0])
    own = fake_teacher(ids, ours.manifest).distributions
    assert own is not None
    p_RV = np.exp(own.logp.reshape(-1, 5).astype(np.float64))
    wanted = 0.25 * p_RV + 0.75 * np.roll(p_RV, 2, axis=1)  # their class 0 is called class2
    lacking = np.isin(rowids.to_numpy(ids), rowids.to_numpy(theirs.read()[0]), invert=True)
    assert 0 < lacking.sum() < len(ids)
    wanted[lacking] = p_RV[lacking]
    np.testing.assert_allclose(np.exp(signal.distributions.logp.reshape(-1, 5)), wanted, rtol=1e-5)
    without, signal_without = AveragedLabels([ours, theirs], [1.0, 3.0], [rowids.empty(), theirs.ids]).read()
    assert without.equals(ids) and signal_without.distributions is not None
    np.testing.assert_allclose(np.exp(signal_without.distributions.logp.reshape(-1, 5)), p_RV, rtol=1e-5)
    some = rowids.to_numpy(ids)[[7, 2, 5]]
    held, part = mixed.read_rows(some)
    at = [rowids.to_numpy(ids).tolist().index(one) for one in rowids.to_numpy(held).tolist()]
    assert part.distributions is not None and len(at) == 3
    np.testing.assert_array_equal(part.distributions.logp, signal.distributions.take(at).logp)
    assert len(mixed.labelled(some)) == 3


def test_what_has_no_mean_is_refused() -> None:
    """Draws, other classes, other tasks, other tokens: each by name. Truncated ones are known at T = 1 alone."""
    first = fake_manifest()
    drawn = first.with_distributions(estimator="sampled", draws=8, codec=("draws", 1))
    for other, told in (
        (drawn, "were drawn"),
        (fake_manifest(classes=4), "over 5 and 4 classes"),
        (first.with_changes(task="image_classification"), "of text_classification and of image"),
        (first.with_changes(teacher=first.teacher.with_changes(tokens="sha256:b")), "different tokenizers"),
    ):
        own = first.with_changes(teacher=first.teacher.with_changes(tokens="sha256:a"))
        with pytest.raises(StoreMismatch, match=told):
            averaged_manifest([own, other])
    topk = fake_manifest(estimator="topk", k=2)
    assert averaged_manifest([topk, first]).distributions.temperatures == (1.0,)
    hotter = first.with_distributions(temperatures=(1.0, 4.0))
    assert averaged_manifest([first, hotter]).distributions.temperatures == (1.0,)


def test_sets_that_share_no_row_are_refused(tmp_path: Path) -> None:
    """Else the other teacher would count for nothing, in silence."""
    ours, theirs = sets(tmp_path, ours=(range(8), 0), theirs=(range(8, 16), 0))
    with pytest.raises(StoreMismatch, match=r"none of the 8 rows has labels in .*theirs"):
        AveragedLabels([ours, theirs], [1.0, 1.0])


def test_other_positions_are_refused(tmp_path: Path) -> None:
    """Labels at other tokens of the same text have no mean."""
    (ours,) = sets(tmp_path, ours=(range(8), 0))

    class Elsewhere:
        """The same labels, one token further."""

        manifest, ref, ids = ours.manifest, ours.ref, ours.ids

        def read_rows(self, wanted: rowids.RowIds) -> tuple[object, Signal]:
            ids, signal = ours.read_rows(wanted)
            return ids, signal_of(
                distributions=replace(signal.distributions, position=signal.distributions.position + np.int32(1))
            )

    with pytest.raises(StoreMismatch, match=r"row [0-9a-f]{32} was labelled at other tokens"):
        AveragedLabels([ours, Elsewhere()], [1, 1]).read()  # type: ignore[list-item]
