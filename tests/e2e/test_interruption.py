"""`ray-distill run`, interrupted by Ctrl-C, and run again: nothing is lost, repeated or different.

What SIGKILL leaves of a training is in `crash/test_training_killed`. Only the commands that are interrupted are
processes of their own, with a Ray of their own; the runs before and after them are the same function in this process,
on the session's Ray. The student pauses in each training pass, so that there is time to interrupt a short training.
"""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from ray_distill.config import load_config
from ray_distill.runtime import campaign
from ray_distill.storage import files
from ray_distill.students.telemetry.curves import curve_url, read_curve
from tests.labs import campaign as lab

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

ROWS = 600
#: Seconds that a training pass takes at least; the student has 48 of them, with a checkpoint every ten.
PAUSE = 0.05
STAGES = ["snapshot", "label", "train", "evaluate", "promote"]


@dataclass(frozen=True, kw_only=True)
class Campaigns:
    """One campaign twice: configs that differ in the folder of their output alone, and these folders."""

    folder: Path
    whole: Path
    disturbed: Path

    def output(self, name: str) -> Path:
        return self.folder / name

    def start(self) -> lab.Command:
        """Start `run` on the campaign that is disturbed."""
        return lab.Command.start(self.folder, "run", str(self.disturbed), "--json")


@pytest.fixture(scope="module")
def campaigns(tmp_path_factory: pytest.TempPathFactory) -> Campaigns:
    folder = tmp_path_factory.mktemp("interruption")
    teacher = lab.write_teacher(folder / "teacher")
    source = lab.write_rows(folder / "rows.jsonl", lab.annotated(lab.texts(ROWS, seed=3), train_labels=30))
    student = {
        "from": "module",
        "model": "tests.labs.noting:noting_student",
        "arguments": {"classes": list(lab.CLASSES), "notes": str(folder / "notes"), "pause": PAUSE},
    }
    whole, disturbed = (
        lab.write_config(
            folder / f"{name}.yaml",
            lab.config_of(
                folder,
                source,
                {"model": str(teacher)},
                output=str(folder / name),
                labels__unit_rows=4,
                evaluation__corruptions=[],
                student__model=student,
            ),
        )
        for name in ("whole", "disturbed")
    )
    return Campaigns(folder=folder, whole=whole, disturbed=disturbed)


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
    campaigns: Campaigns, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while labelling and while training: the same bytes, and it says what it skips."""
    whole, skipped = _run(campaigns.whole, capfd)
    assert skipped == []

    output = campaigns.output("disturbed")
    labelling = campaigns.start()
    labelling.until(lambda: (output / "labels" / "log" / "000000000000.json").exists())
    _ctrl_c(labelling)
    rows = lab.committed_rows(str(output / "labels"))
    assert 0 < rows < ROWS

    training = campaigns.start()
    training.until(lambda: any(output.glob("students/*/work/student/trial-0/checkpoints/*/marker.json")))
    assert training.skipped == ["snapshot"]
    assert any(event.get("rows") == ROWS - rows for event in training.events)
    assert not any(output.glob("students/*/student.json")), "it was to be stopped before the student was finished"
    _ctrl_c(training)

    last, skipped = _run(campaigns.disturbed, capfd)
    assert skipped == ["snapshot", "label"]
    _assert_alike(whole, last, campaigns)

    again, skipped = _run(campaigns.disturbed, capfd)
    assert skipped == STAGES
    assert again == last


def _losses(arm: str, url: str) -> dict[int, float]:
    """The loss of each step of a trained arm."""
    return {step: values["loss"] for step, values in read_curve(curve_url(url.rpartition("/")[0], arm)).items()}


def _assert_alike(whole: campaign.CampaignResult, disturbed: campaign.CampaignResult, campaigns: Campaigns) -> None:
    labels = [lab.label_bytes(str(campaigns.output(name) / "labels")) for name in ("whole", "disturbed")]
    assert labels[0] == labels[1]
    for arm, ref in whole.students.items():
        weights = [files.read_bytes(f"{one.url}/model.safetensors") for one in (ref, disturbed.students[arm])]
        assert weights[0] == weights[1], arm
    curves = [{arm: _losses(arm, ref.url) for arm, ref in one.students.items()} for one in (whole, disturbed)]
    assert curves[1] == curves[0] and all(curves[0].values()), "each step once, though some were trained twice"
    accuracies = [one.report.models["student"].metrics["accuracy"] for one in (whole, disturbed)]
    assert accuracies[0] == accuracies[1]
