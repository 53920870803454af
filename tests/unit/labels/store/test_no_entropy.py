"""Teachers that cannot give entropies: none is made up, and everything that reads a store copes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ray_distill.errors import LabelError
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.codecs.compact import compact_options
from ray_distill.labels.model import rowids
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.signal import Signal, signal_of
from ray_distill.labels.model.validity import split_unusable
from ray_distill.labels.sizing import options as choose
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.tools.export import export_store
from ray_distill.labels.tools.inspect import inspect_row, show_row
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.reduce import reduce_logits
from ray_distill.testing.labels import fake_manifest, fake_snapshot, fake_teacher, label_all, row_id

CODECS = {"topk": ("topk", 2), "lossless": ("compact", 2), "compact": ("compact", 2)}


def _manifest(form: str) -> StoreManifest:
    options = {} if form == "topk" else compact_options((1.0, 2.0), form == "lossless")
    return fake_manifest(estimator="topk").with_distributions(codec=CODECS[form], options=options)


def _silent(row_ids: pa.Array, manifest: StoreManifest) -> Signal:
    found = fake_teacher(row_ids, manifest).distributions
    assert found is not None
    return signal_of(distributions=replace(found, entropy=np.full_like(found.entropy, np.nan)))


@pytest.mark.parametrize("form", sorted(CODECS))
def test_a_store_without_entropies_gives_back_everything_else(tmp_path: Path, form: str) -> None:
    """In every form; the row is shown with an entropy that is not known, and exported with null."""
    url, snapshot = str(tmp_path / "store"), fake_snapshot(range(20))
    label_all(url, _manifest(form), snapshot, _silent)
    store = open_store(url)
    store.log.refresh()
    ids, signal = open_label_set(store.ref(snapshot), snapshot).read()
    told = fake_teacher(ids, store.manifest).distributions
    assert told is not None and signal.distributions is not None
    assert np.isnan(signal.distributions.entropy).all()
    np.testing.assert_array_equal(signal.distributions.ids, told.ids)
    np.testing.assert_allclose(signal.distributions.logp, told.logp, atol=0.05 if form == "compact" else 0)
    report = inspect_row(url, row_id(3).hex())
    assert report.positions[0]["entropy"] is None and "entropy not known" in show_row(report)
    export_store(url, str(tmp_path / "plain"))
    tables = [pq.read_table(path) for path in (tmp_path / "plain").glob("*.parquet")]
    assert {value for table in tables for row in table["entropy"].to_pylist() for value in row} == {None}


def test_an_entropy_that_is_missing_among_others_is_a_broken_answer() -> None:
    """Its row goes to quarantine; and a codec that writes none or all refuses some."""
    manifest = _manifest("compact")
    ids = pa.array(sorted(row_id(number) for number in range(4)), rowids.ROW_ID)
    found = fake_teacher(ids, manifest).distributions
    assert found is not None
    found.entropy[2] = np.nan
    _, kept, rejected = split_unusable(ids, signal_of(distributions=found))
    assert [row for row, _ in rejected] == [ids[2].as_py()]
    assert kept.distributions is not None and np.isfinite(kept.distributions.entropy).all()
    with pytest.raises(LabelError, match="entropy of 1 of 4 positions"):
        parquet_shards.encode_labels(rowids.to_numpy(ids), found, manifest.distributions, {})


@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0])
def test_what_is_lost_without_an_entropy_is_an_upper_bound(scale: float) -> None:
    """Never below what the entropy gives, and close to it where the wide answer holds most of the mass."""
    logits = scale * torch.randn(200, 3000, generator=torch.Generator().manual_seed(1))
    wide = reduce_logits(logits, LabelRequest(estimator="topk", k=1024, temperatures=(1.0,)))
    silent = replace(wide, entropy=np.full_like(wide.entropy, np.nan))
    for known, bound in zip(choose.curve(wide), choose.curve(silent), strict=True):
        assert known.nats <= bound.nats + 1e-6 and known.mass == bound.mass
        if scale == 6.0:
            assert bound.nats == pytest.approx(known.nats, abs=0.01)
