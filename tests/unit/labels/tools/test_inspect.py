"""`inspect` and `export`: what a store holds, for people and for other tools."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_distill import cli
from ray_distill.errors import LabelError
from ray_distill.labels.model.signal import signal_of
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import read_labels
from ray_distill.labels.tools.export import export_store
from ray_distill.labels.tools.inspect import inspect_row, show_row
from ray_distill.storage import files
from ray_distill.testing.labels import fake_manifest, fake_snapshot, fake_teacher, label_all, row_id

BAD = row_id(5)


@pytest.fixture
def store(tmp_path):
    """Twenty rows with a hidden layer; row 5 was answered with NaN and lies in quarantine."""

    def teacher(ids, manifest):
        signal = fake_teacher(ids, manifest)
        for at, name in enumerate(ids.to_pylist()):
            if name == BAD:
                signal.distributions.logp[signal.distributions.entry_offsets[at]] = np.nan
        return signal_of(distributions=signal.distributions, hidden=signal.hidden)

    url = str(tmp_path / "store")
    label_all(url, fake_manifest(estimator="topk", layers=(1,)), fake_snapshot(range(20)), teacher)
    return url


def test_a_row_is_shown_with_its_classes_by_name(store):
    """Likeliest first, with the mass that is not stored at each temperature; probabilities and tail sum to 1."""
    report = inspect_row(store, row_id(3).hex())
    (position,) = report.positions
    p = [value for _, value in position["classes"]]
    assert p == sorted(p, reverse=True) and len(p) == 2
    assert sum(p) + position["tail"]["1"] == pytest.approx(1, abs=1e-5)
    assert all(name.startswith("class") for name, _ in position["classes"])
    assert report.hidden["1"]["width"] == 4
    text = show_row(report)
    assert row_id(3).hex() in text and "layer 1: 1 × 4" in text and "entropy" in text


def test_a_quarantined_row_is_shown_with_its_reason(store):
    """Nobody has to search for why a row has no labels."""
    assert inspect_row(store, BAD.hex()).reason == "distribution is NaN or infinite"
    assert "quarantined: distribution is NaN" in show_row(inspect_row(store, BAD.hex()))


def test_the_first_digits_do_where_they_are_unique(store):
    """Four digits name one of twenty rows; none names all of them, and is refused."""
    assert inspect_row(store, row_id(3).hex()[:6].upper()).row_id == row_id(3).hex()
    common = max("0123456789abcdef", key=lambda digit: sum(row_id(n).hex()[0] == digit for n in range(20)))
    with pytest.raises(LabelError, match="rows begin with"):
        inspect_row(store, common)
    with pytest.raises(LabelError, match="no committed unit contains row"):
        inspect_row(store, row_id(99).hex())


@pytest.mark.parametrize("wrong", ["", "xyz", "0" * 33])
def test_what_is_no_row_id_is_refused(store, wrong):
    """Before anything is read."""
    with pytest.raises(LabelError, match="32 hexadecimal digits"):
        inspect_row(store, wrong)


def test_an_export_is_read_by_a_tool_that_knows_nothing_of_the_store(store, tmp_path):
    """Plain lists of numbers, equal to what the store's own reader gives."""
    target = str(tmp_path / "plain")
    done = export_store(store, target, hidden=True)
    assert (done.rows, done.files) == (19, 5)
    opened = open_store(store)
    opened.log.refresh()
    for unit in opened.ledger.receipts():
        rows = pq.read_table(files.join(target, f"{unit.unit}.parquet")).to_pylist()
        ids, distributions = read_labels(store, opened.manifest, unit)
        assert [bytes.fromhex(row["row_id"]) for row in rows] == [value.ljust(16, b"\0") for value in ids.tolist()]
        assert [i for row in rows for at in row["ids"] for i in at] == distributions.ids.tolist()
        assert [i for row in rows for at in row["logp"] for i in at] == pytest.approx(distributions.logp.tolist())
        assert [tail for row in rows for tail in row["log_tail"]] == distributions.log_tail.tolist()
        assert all(len(row["hidden_1"]) == 1 and len(row["hidden_1"][0]) == 4 for row in rows)
    assert files.read_json(files.join(target, "manifest.json")) == opened.manifest.to_dict()
    with pytest.raises(LabelError, match="is not empty"):
        export_store(store, target)


def test_both_are_commands(store, tmp_path, capsys):
    """Their JSON is the last line of stdout."""
    assert cli.main(["inspect", store, "--row", row_id(3).hex(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["row_id"] == row_id(3).hex()
    assert cli.main(["export", store, str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == 19
