"""What a new store finds out from a look at the data, without a cluster."""

from types import MappingProxyType

import pyarrow as pa
import pytest

from ray_distill.labels.format.fitted_arrays import write_fits
from ray_distill.labels.format.hidden_states import basis_name
from ray_distill.labels.model import rowids
from ray_distill.labels.model.manifest import parts_of
from ray_distill.labels.store.label_store import create_or_open, open_store
from ray_distill.runtime.labelling.calibrate_store import fit_store, with_found
from ray_distill.testing.labels import fake_manifest, fake_snapshot, fake_teacher, label_all, row_id

IDS = pa.array([row_id(number) for number in range(40)], rowids.ROW_ID)


def fitted(labels=MappingProxyType({}), hidden=MappingProxyType({}), **changes):
    """A manifest with these changes, of its parts and of itself, and what is found for it on 40 rows."""
    plain = fake_manifest(layers=(1,), estimator="topk")
    parts = parts_of([plain.distributions.with_changes(**labels), plain.hidden[1].with_changes(**hidden)])
    manifest = plain.with_changes(parts=parts, **changes)
    signal = fake_teacher(IDS, manifest)
    return manifest, fit_store(manifest, IDS, signal)


def test_a_lossless_store_adds_nothing_and_fits_nothing() -> None:
    """Zero nats at every declared temperature, measured through the very bytes of a shard."""
    _, found = fitted()
    assert found.fits == {} and found.measured["rows"] == 40
    assert found.measured["labels"]["nats"] == {"1": pytest.approx(0, abs=1e-6), "2": pytest.approx(0, abs=1e-6)}
    assert found.measured["hidden"]["1"]["relative_squared_error"] < 2**-16


def test_a_compact_store_says_what_it_adds() -> None:
    """Its class order is fitted, its error is not zero and not large, its bytes are counted."""
    _, found = fitted({"codec": ("compact", 2), "options": {"lossless": False, "power": 0.25, "levels": 255}})
    assert sorted(found.fits["ids"]) == list(range(5))
    assert all(0 < value < 1e-3 for value in found.measured["labels"]["nats"].values())
    assert found.measured["labels"]["bytes_a_position"] > 0


def test_a_basis_is_fitted_for_each_layer_and_its_variance_recorded() -> None:
    """The rank that is asked for, or as many components as keep the variance that is."""
    _, found = fitted(hidden={"rank": 2})
    assert found.fits[basis_name(1)].shape == (4, 2) and found.measured["hidden"]["1"]["rank"] == 2
    _, most = fitted(hidden={"variance": 0.9})
    assert most.measured["hidden"]["1"]["variance_kept"] >= 0.9


def test_units_are_cut_to_their_bytes() -> None:
    """Ten times the bytes allow ten times the rows, and never more than the rows that are asked for."""
    _, few = fitted(unit_rows=10_000, unit_bytes=10_000)
    _, more = fitted(unit_rows=10_000, unit_bytes=100_000)
    assert 0 < few.range_rows < more.range_rows <= 10 * few.range_rows + 10
    assert fitted(unit_rows=4, unit_bytes=100_000)[1].range_rows == 0
    assert fitted(unit_rows=4, unit_bytes=1)[1].range_rows == 1


def test_a_store_keeps_what_it_found_and_a_later_run_adopts_it(tmp_path) -> None:
    """A second run that measured something else opens the same store, and its rows are found labelled."""
    url, snapshot = str(tmp_path / "store"), fake_snapshot(range(24))
    manifest, found = fitted(hidden={"rank": 2}, unit_rows=8, unit_bytes=400)
    first = with_found(manifest, found, write_fits(url, found.fits))
    assert first.rows_a_unit < 8
    label_all(url, first, snapshot)
    other = create_or_open(url, manifest.with_changes(measured={"rows": 1}))
    assert other.manifest == open_store(url).manifest == first
    assert other.pending(snapshot) == []
