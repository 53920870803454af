"""A whole campaign with a secret in every place leaves none in any file: records, checkpoints and Ray's logs too."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ray_distill.artifacts import Verdict
from ray_distill.runtime.campaign import CampaignResult
from tests.labs import campaign as lab
from tests.labs import canary

pytestmark = pytest.mark.e2e


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Return the folder of Ray's logs and sockets, whose paths may have a hundred characters at most."""
    folder = Path(tempfile.mkdtemp(prefix="rd"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_whole_campaign_leaves_no_secret(
    tmp_path: Path, ray_folder: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the source to a verdict, then again with a teacher that fails: every file that they leave is read."""
    inputs, left = tmp_path / "inputs", tmp_path / "left"
    left.mkdir()
    canary.write_inputs(inputs)
    for name, value in canary.variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("RAY_TMPDIR", str(ray_folder))
    with canary.served(inputs) as host:
        path = inputs / "campaign.yaml"
        path.write_text(yaml.safe_dump(canary.campaign(left / "out", host)))
        done = lab.Command.start(left, "run", str(path), "--set", "tracking={}", "--json")
        assert done.wait() == 0, done.stderr
        failing = ("labels.teacher.model=tests.labs.hostile.failing:teacher", "labels.store=other")
        failed = lab.Command.start(left, "run", str(path), *(part for one in failing for part in ("--set", one)))
        assert failed.wait() == 1 and "failing:teacher" in failed.stderr
    assert CampaignResult.from_dict(done.result).decision.verdict in Verdict
    logs = [item for item in ray_folder.rglob("*.log") if item.stat().st_size]
    assert logs and (left / "out" / "mlflow.db").exists()
    assert canary.leaks(left, ray_folder) == []
