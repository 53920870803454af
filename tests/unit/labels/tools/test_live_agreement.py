"""A sample labelled again: what is noise, and what is another answer."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.labels.format.codecs.compact import compact_options, fit_ids
from ray_distill.labels.model import rowids
from ray_distill.labels.model.manifest import parts_of
from ray_distill.labels.model.signal import Vectors, signal_of
from ray_distill.labels.tools.live_agreement import Answer, as_stored, compare
from ray_distill.testing.labels import fake_manifest, fake_teacher, row_id

IDS = pa.array([row_id(number) for number in range(12)], rowids.ROW_ID)
ESTIMATORS = ("dense", "topk")


def answer(estimator="topk", noise=0.0, seed=0):
    """The fake teacher's answer for twelve rows, its probabilities moved by relative ``noise`` within each position."""
    manifest = fake_manifest(estimator=estimator, layers=(1,))
    signal = fake_teacher(IDS, manifest)
    rng = np.random.default_rng(seed)
    logp = signal.distributions.logp + rng.normal(scale=noise, size=len(signal.distributions.logp)).astype(np.float32)
    values = signal.hidden[1].values * (1 + rng.normal(scale=noise, size=signal.hidden[1].values.shape))
    moved = signal_of(
        distributions=replace(signal.distributions, logp=logp),
        hidden={1: Vectors(offsets=signal.hidden[1].offsets, values=values.astype(np.float32))},
    )
    order = np.argsort(rowids.to_numpy(IDS), kind="stable")
    return manifest, Answer(ids=rowids.to_numpy(IDS)[order], signal=moved.take(order))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_answers_are_no_distance_apart(estimator):
    """Store, teacher and teacher again the same: zero everywhere, every row agrees."""
    _, one = answer(estimator)
    found = compare(one, one, one)
    assert found.ok and found.rows == 12
    assert found.stored.largest == found.noise.largest == 0
    assert found.hidden[1].stored.largest == 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_noise_is_no_disagreement_and_what_exceeds_it_is(estimator):
    """Two live answers as far apart as the store is from one agree; a store ten times as far does not."""
    (_, stored), (_, live), (_, again) = (answer(estimator, 0.01, seed) for seed in range(3))
    found = compare(stored, live, again)
    assert found.ok and found.stored.largest > 1e-3 and found.noise.largest > 1e-3
    far = compare(answer(estimator, 0.2, 3)[1], live, again)
    assert not far.ok and far.noise == found.noise


def test_the_row_whose_label_is_anothers_is_named():
    """Two rows' labels swapped: these two disagree, the others do not."""
    _, one = answer()
    order = np.arange(12)
    order[[2, 7]] = [7, 2]
    found = compare(Answer(ids=one.ids, signal=one.signal.take(order)), one, one)
    assert found.disagree == tuple(rowids.hexadecimal(one.ids[[2, 7]]))
    assert not found.ok and found.to_dict()["disagree"] == list(found.disagree)


def test_a_row_that_is_answered_no_more_disagrees():
    """The teacher rejects a row that the store has an answer for."""
    _, one = answer()
    less = Answer(ids=one.ids[1:], signal=one.signal.take(np.arange(1, 12)))
    assert compare(one, less, one).disagree == tuple(rowids.hexadecimal(one.ids[:1]))


def test_another_hidden_state_disagrees_though_the_labels_agree():
    """Layers are compared on their own."""
    _, one = answer()
    hidden = one.signal.hidden[1]
    other = replace(one, signal=one.signal.with_parts({"hidden.1": replace(hidden, values=hidden.values[::-1].copy())}))
    found = compare(other, one, one)
    assert not found.ok and found.stored.largest == 0 and found.hidden[1].stored.largest > 0.1


def test_a_class_at_the_edge_of_a_topk_may_change():
    """Noise swaps the last class of a top-k for its equal: the bucket of the rest takes it, and the rows agree."""
    _, one = answer()
    entries = one.signal.distributions
    edge = entries.entry_offsets[1:] - 1
    faint = entries.logp.copy()
    faint[edge] = -12.0
    ids = entries.ids.copy()
    before = Answer(ids=one.ids, signal=signal_of(distributions=replace(entries, logp=faint)))
    ids[edge] = np.where(ids[edge] < entries.classes - 1, entries.classes - 1, ids[edge])
    after = Answer(ids=one.ids, signal=signal_of(distributions=replace(entries, logp=faint, ids=ids)))
    assert not np.array_equal(ids, entries.ids)
    assert compare(before, after, before).ok


def test_what_the_codec_adds_is_no_disagreement():
    """A lossy store's rows are compared with answers that went through the same form."""
    manifest, one = answer()
    options = compact_options(manifest.distributions.temperatures, False)
    spec = manifest.distributions.with_changes(codec=("compact", 2), options=options)
    lossy = manifest.with_changes(parts=parts_of([spec, manifest.hidden[1].with_changes(dtype="int8")]))
    fits = {"ids": fit_ids(one.signal.distributions, manifest.space.size)}
    stored = as_stored(one, lossy, fits)
    assert not np.array_equal(stored.signal.distributions.logp, one.signal.distributions.logp)
    assert compare(stored, as_stored(one, lossy, fits), as_stored(one, lossy, fits)).stored.largest == 0
