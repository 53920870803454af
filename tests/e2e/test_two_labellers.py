"""Two labelling processes, each with a Ray of its own, on one store; then the store is audited, and used or damaged."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_distill import cli
from ray_distill.labels.model.work_units import Receipt
from ray_distill.labels.store.label_store import open_store
from ray_distill.storage import files
from ray_distill.storage.receipts import part_file
from ray_distill.testing.s3 import s3_server
from tests.labs import campaign as lab
from tests.labs import drawn

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

TEACHER = {"model": "tests.labs.campaign:spelling_teacher"}
ROWS = 400
STUDENT = {
    "from": "module",
    "model": "ray_distill.testing.models:tiny_text_model",
    "arguments": {"classes": list(lab.CLASSES)},
}


def _label_twice(folder: Path, config: str) -> list[lab.Command]:
    both = [lab.Command.start(folder, "label", config, "--json") for _ in range(2)]
    for one in both:
        assert one.wait() == 0, one.stderr
    return both


def _named(store_url: str) -> list[str]:
    """Every unit that the log names, as often as it names it."""
    store = open_store(store_url)
    store.log.refresh()
    return [
        receipt.unit for number, record in enumerate(store.log.records) for receipt in Receipt.in_record(record, number)
    ]


def _audit(store: str, capfd: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, object]]:
    status = cli.main(["audit", store, "--json", *more])
    report: dict[str, object] = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert {"ok", "units", "rows", "duplicates", "missing", "orphans", "corrupt"} <= set(report)
    return status, report


def _config(folder: Path, output: str, **changes: object) -> str:
    source = lab.write_rows(folder / "rows.jsonl", lab.annotated(lab.texts(ROWS, seed=3), train_labels=30))
    value = lab.config_of(
        folder, source, TEACHER, output=output, student__model=STUDENT, tracking={"enabled": False}, **changes
    )
    return str(lab.write_config(folder / "campaign.yaml", value))


@pytest.fixture(params=drawn.one_of("local", "s3"))
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A campaign's folder on this kind of store."""
    if request.param == "local":
        yield str(tmp_path / "out")
        return
    with s3_server() as bucket:
        yield f"{bucket}/spelling"


def test_two_labellers_at_once(output: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Both end well and agree, no unit is committed twice, and the audit finds all whole.

    From an object store a student is trained; on a local one a flipped byte is found, and never trained on.
    """
    config, store = _config(tmp_path, output), f"{output}/labels"
    assert cli.main(["snapshot", config, "--json"]) == 0
    snapshot = capfd.readouterr().out.strip().splitlines()[-1]
    _label_twice(tmp_path, config)
    units = _named(store)
    assert len(units) == len(set(units))
    if output.startswith("s3://"):
        assert json.loads(snapshot)["url"].startswith(output)
        _train_from(output, config, tmp_path)
    status, report = _audit(store, capfd, "--snapshot", snapshot)
    assert status == 0
    assert report["ok"] is True
    assert (report["units"], report["rows"]) == (len(units), ROWS)
    assert (report["duplicates"], report["missing"], report["corrupt"]) == (0, 0, 0)
    if not output.startswith("s3://"):
        _assert_damage_is_found(store, config, capfd)


def _train_from(output: str, config: str, folder: Path) -> None:
    """Train every arm from the store, in a command that finds it by its environment."""
    trained = lab.Command.start(folder, "train", config, "--json", "--set", "student.training.epochs=1")
    assert trained.wait() == 0, trained.stderr
    for arm, ref in trained.result.items():
        assert ref["url"].startswith(f"{output}/students/")
        assert files.exists(f"{ref['url']}/model.safetensors"), arm


def _assert_damage_is_found(store: str, config: str, capfd: pytest.CaptureFixture[str]) -> None:
    damaged = _flip_a_byte(store)
    status, report = _audit(store, capfd)
    assert status == 1
    assert report["ok"] is False
    assert report["corrupt"] == 1
    assert damaged in json.dumps(report["details"])
    assert cli.main(["train", config]) == 1
    told = capfd.readouterr().err
    assert "Traceback" not in told
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert damaged in errors[0]


def _flip_a_byte(store_url: str) -> str:
    """Damage one committed shard of labels; returns its name."""
    store = open_store(store_url)
    store.log.refresh()
    receipt = Receipt.in_record(store.log.records[0], 0)[0]
    name = part_file("distributions", receipt.unit, receipt.attempt)
    path = Path(store_url) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    return name
