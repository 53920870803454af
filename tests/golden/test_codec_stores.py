"""Shards written by each codec version stay readable for ever, and say what they said when they were written."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.codecs import CODECS
from ray_distill.labels.model import rowids
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.testing.labels import row_id

FOLDER = Path(__file__).parent / "codecs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.parquet"))

#: Structure, and what a codec keeps bit for bit.
EXACT = ("row_offsets", "position", "entry_offsets", "ids")


def load(name):
    """Bytes, the manifest's part, fitted arrays and expected arrays of a golden shard."""
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = dict(file)
    fits = {key.removeprefix("fit."): value for key, value in arrays.items() if key.startswith("fit.")}
    manifest = StoreManifest.from_dict(json.loads((FOLDER / f"{name}.json").read_text()))
    return (FOLDER / f"{name}.parquet").read_bytes(), manifest.distributions, fits, arrays


def test_every_codec_version_has_a_golden_shard():
    """A codec that is released without one could change unnoticed."""
    assert {load(name)[1].codec for name in NAMES} == set(CODECS)


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_shard_reads_as_it_did(name):
    """Row ids, structure and lossless values are the same bit for bit, lossy values to float32's rounding."""
    data, spec, fits, expected = load(name)
    ids, found = parquet_shards.decode_labels(data, spec, fits, name)
    np.testing.assert_array_equal(ids, rowids.to_numpy(pa.array([row_id(n) for n in range(3)], rowids.ROW_ID)))
    lossy = spec.codec[0] == "compact" and not spec.options["lossless"]
    for field in ("row_offsets", "position", "entry_offsets", "ids", "logp", "log_tail", "entropy"):
        value = getattr(found, field)
        assert (value.dtype, value.shape) == (expected[field].dtype, expected[field].shape), field
        if lossy and field not in EXACT:
            np.testing.assert_allclose(value, expected[field], rtol=1e-6, atol=1e-6, err_msg=field)
        else:
            assert value.tobytes() == expected[field].tobytes(), field
    assert (found.draws is not None) == ("count" in expected)
    if found.draws is not None:
        np.testing.assert_array_equal(found.draws.count, expected["count"])
        np.testing.assert_array_equal(found.draws.log_normaliser, expected["log_normaliser"])


@pytest.mark.parametrize("name", [name for name in NAMES if "lossless" in name or not name.startswith("compact")])
def test_lossless_shards_are_written_with_the_same_bytes(name):
    """Writers still give the very columns, and with the same Arrow the very file: a resumed store goes on as it was."""
    data, spec, fits, _ = load(name)
    again = parquet_shards.encode_labels(*parquet_shards.decode_labels(data, spec, fits, name), spec, fits)
    assert parquet_shards.from_parquet(again, name).equals(parquet_shards.from_parquet(data, name))
    if created_by(again) == created_by(data):
        assert again == data


def created_by(data):
    """The library that wrote a Parquet file: its compressor may differ from another's."""
    return pq.read_metadata(pa.BufferReader(data)).created_by
