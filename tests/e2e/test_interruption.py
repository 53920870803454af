"""`ray-distill run`, interrupted by Ctrl-C, and run again: nothing is lost, repeated or different.

What SIGKILL leaves of a training is in `crash/test_training_killed`.
"""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from ray_distill.storage import files
from tests.labs import campaign as lab

pytestmark = pytest.mark.e2e

ROWS = 600
STAGES = ["snapshot", "label", "train", "evaluate", "promote"]


@dataclass(frozen=True, kw_only=True)
class Campaigns:
    """One campaign twice: configs that differ in the folder of their output alone, and these folders."""

    folder: Path
    whole: str
    disturbed: str

    def output(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def campaigns(tmp_path_factory: pytest.TempPathFactory) -> Campaigns:
    folder = tmp_path_factory.mktemp("interruption")
    teacher = lab.write_teacher(folder / "teacher")
    source = lab.write_rows(folder / "rows.jsonl", lab.annotated(lab.texts(ROWS, seed=3), train_labels=30))
    paths = [
        str(
            lab.write_config(
                folder / f"{name}.yaml",
                lab.config_of(
                    folder,
                    source,
                    {"model": str(teacher)},
                    output=str(folder / name),
                    labels__unit_rows=4,
                    evaluation__corruptions=[],
                    student__training__epochs=25,
                ),
            )
        )
        for name in ("whole", "disturbed")
    ]
    return Campaigns(folder=folder, whole=paths[0], disturbed=paths[1])


def _run(campaigns: Campaigns, config: str) -> lab.Command:
    return lab.Command.start(campaigns.folder, "run", config, "--json")


def _ctrl_c(command: lab.Command) -> None:
    """A terminal's Ctrl-C reaches every process of the group; the command ends at once, and says how to go on."""
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.wait() == 130, command.stderr
    assert "Traceback" not in command.stderr
    assert "run the same command again and it goes on" in command.stderr.splitlines()[-1]
    command.wait_for_all()


def test_a_run_that_is_stopped_again_and_again_ends_as_one_that_is_not(campaigns: Campaigns) -> None:
    """Ctrl-C while labelling and while training: the same bytes, and it says what it skips."""
    whole = _run(campaigns, campaigns.whole)
    assert whole.wait() == 0, whole.stderr
    assert whole.skipped == []

    output = campaigns.output("disturbed")
    labelling = _run(campaigns, campaigns.disturbed)
    labelling.until(lambda: (output / "labels" / "log" / "000000000000.json").exists())
    _ctrl_c(labelling)
    rows = lab.committed_rows(str(output / "labels"))
    assert 0 < rows < ROWS

    training = _run(campaigns, campaigns.disturbed)
    training.until(lambda: any(output.glob("students/*/work/student/trial-0/checkpoints/*/marker.json")))
    assert training.skipped == ["snapshot"]
    assert any(event.get("rows") == ROWS - rows for event in training.events)
    assert not any(output.glob("students/*/student.json")), "it was to be stopped before the student was finished"
    _ctrl_c(training)

    last = _run(campaigns, campaigns.disturbed)
    assert last.wait() == 0, last.stderr
    assert last.skipped == ["snapshot", "label"]
    _assert_alike(whole.result, last.result, campaigns)

    again = _run(campaigns, campaigns.disturbed)
    assert again.wait() == 0, again.stderr
    assert again.skipped == STAGES
    assert again.result == last.result


def _assert_alike(whole: Mapping[str, object], disturbed: Mapping[str, object], campaigns: Campaigns) -> None:
    labels = [lab.label_bytes(str(campaigns.output(name) / "labels")) for name in ("whole", "disturbed")]
    assert labels[0] == labels[1]
    for arm, ref in whole["students"].items():
        weights = [files.read_bytes(f"{one['url']}/model.safetensors") for one in (ref, disturbed["students"][arm])]
        assert weights[0] == weights[1], arm
    curves = [files.read_json(str(campaigns.output(name) / "state" / "curves.json")) for name in ("whole", "disturbed")]
    assert curves[1] == curves[0], "what a checkpoint holds is not trained again, but told again"
    accuracies = [one["report"]["models"]["student"]["metrics"]["accuracy"] for one in (whole, disturbed)]
    assert accuracies[0] == accuracies[1]
