"""No secret of a campaign, its environment or its command line is in anything that a command leaves behind."""

import base64
import gzip
import json
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ray_distill import cli
from ray_distill.cli import submit as submitting
from ray_distill.config import load_config
from ray_distill.errors import ModelError
from ray_distill.runtime import campaign
from ray_distill.runtime.core import connection
from tests.labs import canary
from tests.labs.canary import SECRETS, filled

COMMANDS = ("run", "snapshot", "write", "label", "train", "evaluate", "promote", "relabel", "sweep")
REFUSED = {
    "output": ("output", "ftp://ann:{}@files.example/out"),
    "labels.store": ("labels.store", "https://x.example/labels?sig={}"),
    "tracking.uri": ("tracking.uri", "postgres://ann:{}@db.example/mlflow"),
    "tracking.registry_uri": ("tracking.registry_uri", "ftp://ann:{}@db.example/mlflow"),
}


class Lab:
    """A campaign with every secret, and what commands wrote: below ``folder``, but not its inputs."""

    def __init__(self, folder: Path, inputs: Path, host: str, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self.inputs, self.host, self._capture = folder, inputs, host, capture

    def run(self, *argv: str) -> int:
        """Run a command; keep its stdout and stderr as files."""
        try:
            status = cli.main(argv)
        except SystemExit as end:
            status = int(end.code or 0)
        written = self._capture.readouterr()
        number = len(list(self.folder.glob("*.log")))
        (self.folder / f"{number:03d}.log").write_text(f"{status}\n{written.out}\n{written.err}", encoding="utf-8")
        return status

    def leaks(self) -> list[canary.Leak]:
        return canary.leaks(self.folder)


@pytest.fixture
def lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[tuple[Lab, str]]:
    folder, inputs = tmp_path / "left", tmp_path / "inputs"
    for place in (folder, folder / "tmp"):
        place.mkdir()
    canary.write_inputs(inputs)
    for name, value in canary.variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(connection, "connected", lambda address: nullcontext())
    with canary.served(inputs) as host:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        path = inputs / "campaign.yaml"
        path.write_text(yaml.safe_dump(canary.campaign(folder / "out", host)))
        yield Lab(folder, inputs, host, capsys), str(path)


def test_there_are_more_than_forty_places_with_a_secret_each() -> None:
    """And none of the secrets is a part of another."""
    assert len(SECRETS) > 40 and len(set(SECRETS.values())) == len(SECRETS)


def test_dry_runs_and_refusals_show_no_secret(lab: tuple[Lab, str]) -> None:
    """A plan in both forms, a wrong value in each place, wrong YAML, and other commands with the file."""
    here, config = lab
    assert here.run("run", config, "--dry-run") == 0 and here.run("run", config, "--dry-run", "--json") == 0
    wrong = [
        f"{path}={{a: .nan, b: '{filled(name, text, here.host)}'}}".replace("\n", " ")
        for name, (path, text) in canary.FIELDS.items()
        if not path[-1].isdigit()
    ]
    assert here.run("run", config, *(part for one in wrong for part in ("--set", one))) == 1
    for name, (path, text) in REFUSED.items():
        assert here.run("run", config, "--set", f"{path}={filled(name, text)}") == 1
    secret = SECRETS["--set"]
    assert here.run("run", config, "--set", f"labels.teacher.arguments.api_key=[{secret}") == 1
    assert here.run("run", config, "--set", f"labels.teacher.arguments.unknown_password={secret}", "--dry-run") == 1
    broken = here.inputs / "broken.yaml"
    broken.write_text(f"labels:\n  api_key: {secret}: x\n")
    assert here.run("run", str(broken)) == 1
    assert here.run("audit", f"http://ann:{SECRETS['store of an audit']}@{here.host}/labels") == 1
    reference = {"kind": "SnapshotRef", "url": f"https://ann:{SECRETS['--snapshot']}@x/s", "fingerprint": "f"}
    assert here.run("label", config, "--snapshot", json.dumps(reference)) == 1
    assert here.leaks() == []


def test_a_snapshot_and_its_state_have_no_secret_and_last(lab: tuple[Lab, str]) -> None:
    """Manifest, quarantine and state; with new signatures and passwords of the same files nothing is done again."""
    here, config = lab
    assert here.run("snapshot", config) == 0
    taken = (here.folder / "out" / "snapshots").iterdir()
    quarantined = [row for one in taken for row in pq.read_table(one / "quarantine.parquet").to_pylist()]
    assert any(f"http://{here.host}/rows.jsonl" in str(row) for row in quarantined)
    assert here.leaks() == []
    rotated = here.inputs / "rotated.yaml"
    rotated.write_text(Path(config).read_text().replace("c4nary", "n3wnew"))
    before = load_config(config)
    after = load_config(rotated)
    assert before.snapshot.source != after.snapshot.source and before.fingerprint == after.fingerprint
    assert campaign.snapshot_key(before) == campaign.snapshot_key(after)
    assert here.run("snapshot", str(rotated)) == 0
    assert "already taken, skipped" in (here.folder / "001.log").read_text()
    assert len(list((here.folder / "out" / "state").glob("parent-*"))) == 1


@pytest.mark.parametrize("expected", [True, False])
def test_failures_of_every_stage_show_no_secret(
    lab: tuple[Lab, str], monkeypatch: pytest.MonkeyPatch, expected: bool
) -> None:
    """Errors of other libraries have the secrets without their names; a traceback goes to a file."""
    here, config = lab
    everything = " ".join(secret for name, secret in SECRETS.items() if name not in canary.OTHERS)

    def fail(*arguments: Any, **named: Any) -> None:
        raise (ModelError if expected else RuntimeError)(f"401 for {everything}")

    for command in COMMANDS:
        monkeypatch.setattr(campaign, command, fail)
    monkeypatch.setattr("ray_distill.cli.resolve_references._latest", fail)
    for command in COMMANDS:
        assert here.run(command, config) == 1
    assert here.run("relabel", config, "--source", f"http://ann:{SECRETS['--source']}@{here.host}/none.jsonl") == 1
    assert here.leaks() == []
    assert len(list((here.folder / "tmp").glob("*traceback*"))) == (0 if expected else len(COMMANDS) + 1)


def test_a_submission_shows_no_secret(lab: tuple[Lab, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray's dashboard shows is refused; what it is sent has none but in the campaign's file."""
    here, config = lab
    sent: list[dict[str, Any]] = []
    client = SimpleNamespace(submit_job=lambda **request: sent.append(request) or "job-1")
    monkeypatch.setattr(submitting, "check_address", lambda *arguments: None)
    monkeypatch.setattr(submitting, "_client", lambda *arguments: client)
    (here.inputs / "jobs").mkdir()
    (here.inputs / "jobs" / "run.py").write_text("")
    own = ("submit", config, "--job", "run", "--working-dir", str(here.inputs), "--address", "http://127.0.0.1:9")
    for option in (
        ("--set", f"labels.teacher.arguments.api_key={SECRETS['--set']}"),
        ("--metadata", f"api_key={SECRETS['--metadata']}"),
        ("--runtime-env", json.dumps({"env_vars": {"HF_TOKEN": SECRETS["--runtime-env"]}})),
        ("--runtime-env", json.dumps({"pip": ["-i", f"https://ann:{SECRETS['--runtime-env']}@pypi.example"]})),
        (f"--argument=--source=s3://key:{SECRETS['--argument']}@bucket",),
    ):
        assert here.run(*own, *option) == 1 and not sent
    assert here.run(*own, "--no-follow") == 0
    (here.folder / "sent.json").write_text(json.dumps(sent))
    assert len(sent) == 1 and here.leaks() == []


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """Plain, in a URL, in base64 and packed: the tests above would see each."""
    secret = SECRETS["password"]
    (tmp_path / "a.txt").write_text(f"x{secret}x")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("inner.txt", secret * 20)
    pq.write_table(pa.table({"a": [secret]}), tmp_path / "c.parquet", compression="zstd")
    with sqlite3.connect(tmp_path / "d.db") as database:
        database.execute("CREATE TABLE t (a TEXT)")
        database.execute("INSERT INTO t VALUES (?)", (secret,))
    database.close()
    (tmp_path / "e.json").write_text(json.dumps({"header": base64.b64encode(b"ann:" + secret.encode()).decode()}))
    (tmp_path / "f.gz").write_bytes(gzip.compress(secret.encode()))
    (tmp_path / secret).mkdir()
    (tmp_path / secret / "g").write_text("")
    assert {leak.file.name for leak in canary.leaks(tmp_path)} == {
        "a.txt",
        "b.zip",
        "c.parquet",
        "d.db",
        "e.json",
        "f.gz",
        "g",
    }
