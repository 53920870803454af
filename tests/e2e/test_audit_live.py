"""`ray-distill audit --live`: the teacher that filled a store is asked again, and finds its own answers there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_distill import cli
from ray_distill.config import Campaign
from ray_distill.labels.store.label_store import LabelStore, create_or_open, open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.store.writer import write_attempt
from ray_distill.runtime import campaign
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from tests.labs import campaign as lab

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

TEACHER = {"model": "tests.labs.campaign:spelling_teacher"}


def _audit(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    status = cli.main(["audit", *arguments, "--json"])
    said = capfd.readouterr()
    return status, json.loads(said.out.splitlines()[-1]) if said.out.strip() else {}, said.err


def _forge(store: LabelStore, snapshot: Snapshot, url: str) -> str:
    """A store of the same manifest, sound in every byte, where two rows have each other's labels; an id of them."""
    ids, signal = open_label_set(store.ref(snapshot), snapshot).read(layers=tuple(store.manifest.hidden))
    order = np.arange(len(ids))
    p = np.exp(signal.distributions.logp).reshape(len(ids), -1)
    other = int(np.abs(p - p[0]).sum(axis=1).argmax())
    order[[0, other]] = [other, 0]
    forged, swapped = create_or_open(url, store.manifest), signal.take(order)
    place = {name: at for at, name in enumerate(ids.to_pylist())}
    receipts = []
    for unit in forged.pending(snapshot):
        shard = next(shard for shard in snapshot.shards if shard.name == unit.shard)
        names = snapshot.read_shard(shard, ["row_id"])["row_id"].take(list(unit.rows)).combine_chunks()
        rows = [place[name] for name in names.to_pylist()]
        receipts.append(write_attempt(url, store.manifest, unit, row_ids=names, signal=swapped.take(rows), rejected=[]))
    forged.commit(receipts)
    return str(ids[0].as_py().hex())


def _config(folder: Path, teacher: dict[str, Any]) -> tuple[str, Campaign]:
    source = lab.write_rows(folder / "rows.jsonl", lab.annotated(lab.texts(120, seed=3), train_labels=30))
    value = lab.config_of(folder, source, teacher, labels__unit_rows=16, tracking={"enabled": False})
    path = lab.write_config(folder / "campaign.yaml", value)
    return str(path), lab.load(path, value)


def test_the_teacher_agrees_with_its_store_and_not_with_another(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """All rows of the store agree; two labels swapped in a store that is sound in every byte are named; a store of
    another teacher is refused.
    """
    path, config = _config(tmp_path, TEACHER)
    labels = campaign.label(config, campaign.snapshot(config))
    capfd.readouterr()
    status, report, _ = _audit(capfd, config.store_url, "--live", path, "--sample", "40")
    assert (status, report["ok"], report["live"]["ok"], report["live"]["rows"]) == (0, True, True, 40)
    assert report["live"]["stored"]["largest"] <= 1e-4

    snapshot, forged = open_snapshot(labels.snapshot), str(tmp_path / "forged")
    row = _forge(open_store(config.store_url), snapshot, forged)
    status, report, _ = _audit(capfd, forged, "--live", path, "--sample", "120")
    assert (status, report["ok"], report["live"]["ok"]) == (1, True, False)
    assert row in report["live"]["disagree"] and len(report["live"]["disagree"]) == 2

    status, _, said = _audit(
        capfd, config.store_url, "--live", path, "--set", "labels.teacher.arguments.backwards=true"
    )
    assert status == 1 and "is not the teacher that made the labels" in said and "Traceback" not in said
