"""`ray-distill run`, interrupted by Ctrl-C, and run again: nothing is lost, repeated or different.

What SIGKILL leaves of a training is in `crash/test_training_killed`. Only the commands that are interrupted are
processes of their own, with a Ray of their own. The undisturbed run they are compared with is the session's
(`tests.labs.whole`), and the last run is the same function in this process, on the session's Ray.
"""

import os
import signal
from pathlib import Path

import pytest

from ray_distill.config import load_config
from ray_distill.runtime import campaign
from ray_distill.storage import files
from ray_distill.students.telemetry.curves import curve_url, read_curve
from tests.labs import campaign as lab
from tests.labs.whole import ROWS, WholeCampaign

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

STAGES = ["snapshot", "label", "train", "evaluate", "promote"]


def _ctrl_c(command: lab.Command) -> None:
    """A terminal's Ctrl-C reaches every process of the group; the command ends at once, and says how to go on."""
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.wait() == 130, command.stderr
    assert "Traceback" not in command.stderr
    assert "run the same command again to continue" in command.stderr.splitlines()[-1]
    command.wait_for_all()


def _run(path: Path, capfd: pytest.CaptureFixture[str]) -> tuple[campaign.CampaignResult, list[str]]:
    """Run a campaign in this process; its result, and the stages that it says it skipped."""
    capfd.readouterr()
    result = campaign.run(load_config(str(path)))
    events = lab.events_of(capfd.readouterr().err)
    return result, [event["skipped"] for event in events if "skipped" in event]


def test_a_run_that_is_stopped_again_and_again_ends_as_one_that_is_not(
    whole: WholeCampaign, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while labelling and while training: the same bytes, and it says what it skips."""
    config, output = whole.write_copy("disturbed"), whole.folder / "disturbed"
    labelling = lab.Command.start(whole.folder, "run", str(config), "--json")
    labelling.until(lambda: (output / "labels" / "log" / "000000000000.json").exists())
    assert labelling.skipped == []
    _ctrl_c(labelling)
    rows = lab.committed_rows(str(output / "labels"))
    assert 0 < rows < ROWS

    training = lab.Command.start(whole.folder, "run", str(config), "--json")
    training.until(lambda: any(output.glob("students/*/work/student/run-0/checkpoints/*/marker.json")))
    assert training.skipped == ["snapshot"]
    assert any(event.get("rows") == ROWS - rows for event in training.events)
    assert not any(output.glob("students/*/student.json")), "it was to be stopped before the student was finished"
    _ctrl_c(training)

    last, skipped = _run(config, capfd)
    assert skipped == ["snapshot", "label"]
    _assert_alike(whole.result, last, whole.folder)

    again, skipped = _run(config, capfd)
    assert skipped == STAGES
    assert again == last


def _losses(arm: str, url: str) -> dict[int, float]:
    """The loss of each step of a trained arm."""
    return {step: values["loss"] for step, values in read_curve(curve_url(url.rpartition("/")[0], arm)).items()}


def _assert_alike(whole: campaign.CampaignResult, disturbed: campaign.CampaignResult, folder: Path) -> None:
    labels = [lab.label_bytes(str(folder / name / "labels")) for name in ("out", "disturbed")]
    assert labels[0] == labels[1]
    for arm, ref in whole.students.items():
        weights = [files.read_bytes(f"{one.url}/model.safetensors") for one in (ref, disturbed.students[arm])]
        assert weights[0] == weights[1], arm
    curves = [{arm: _losses(arm, ref.url) for arm, ref in one.students.items()} for one in (whole, disturbed)]
    assert curves[1] == curves[0] and all(curves[0].values()), "each step once, though some were trained twice"
    accuracies = [one.report.models["student"].metrics["accuracy"] for one in (whole, disturbed)]
    assert accuracies[0] == accuracies[1]
