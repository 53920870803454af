"""The `label` command, with a real Ray, on an object store of which a twentieth of the requests fails."""

import json

import pytest

from ray_distill import cli
from ray_distill.artifacts import SnapshotRef
from ray_distill.labels.tools.audit import audit
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files, remote
from ray_distill.testing.flaky_s3 import flaky_s3_server
from tests.labs import label_kills as kill_lab
from tests.labs.label_kills import lab

pytestmark = pytest.mark.crash

ROWS = 160


def _label(folder, output, capfd, *, here):
    """Snapshot and label a campaign below ``output``; returns the snapshot and the bytes of the label shards.

    ``here``: label in this process, as a run that needs nothing of its environment can.
    """
    source = lab.write_rows(folder / "rows.jsonl", lab.annotated(lab.texts(ROWS, seed=3), train_labels=30))
    config = str(
        lab.write_config(
            folder / "campaign.yaml",
            lab.config_of(
                folder,
                source,
                {"model": "tests.labs.campaign:spelling_teacher"},
                output=output,
                student__model=kill_lab.STUDENT,
                tracking={"enabled": False},
                labels__unit_rows=8,
                labels__check={"limits": {"accuracy": {"min": 0.5}}},
            ),
        )
    )
    assert cli.main(["snapshot", config]) == 0
    snapshot = SnapshotRef.from_dict(json.loads(capfd.readouterr().out.strip().splitlines()[-1]))
    if here:
        assert cli.main(["label", config, "--json"]) == 0
    else:
        command = lab.Command.start(folder, "label", config, "--json")
        assert command.wait() == 0, command.stderr
    return snapshot, lab.label_bytes(f"{output}/labels")


def test_the_label_command_ends_as_on_a_store_that_does_not_fail(tmp_path, capfd, monkeypatch):
    """Snapshot, label and audit, all on the failing store: the same bytes as in a folder, every row once."""
    expected = _label(tmp_path, str(tmp_path / "out"), capfd, here=True)[1]
    client = {**remote.S3_CLIENT, "connect_timeout": 5, "read_timeout": 3}
    with flaky_s3_server(seed=5, client=client) as server:
        output = f"{server.url}/spelling"
        snapshot, found = _label(tmp_path, output, capfd, here=False)
        assert found == expected
        report = audit(f"{output}/labels", open_snapshot(snapshot))
        assert report.ok, report.to_dict()
        assert (report.rows, report.duplicates) == (ROWS, ())
        assert files.exists(f"{output}/labels/store.json")
        assert sum(server.injected.values()) > 10
