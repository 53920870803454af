"""A campaign's file with everything that is wrong in it, and the JSON schema by which editors check it."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ray_distill import cli
from ray_distill.cli.campaign_file.schema import campaign_schema
from ray_distill.config import parse_config
from ray_distill.config.load import open_document

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "jobs" / "campaign.schema.json"
EXAMPLES = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))


def _wrong(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    (folder / "c.yaml").write_text(text)
    assert cli.main(["run", "--dry-run", str(folder / "c.yaml")]) == 1
    return capsys.readouterr().err.strip().split("\n  ")[1:]


TEXT = """\
campaign: c
task: {task}
snapshot: {{source: /nowhere/rows.csv}}
labels:
  teacher: {{model: /nowhere/teacher}}
  check: {{limits: {{acuracy: {{min: 0.5}}}}}}
student:
  losses: {{sooft: {{weight: 1}}, hard: {{wieght: 1}}}}
gate:
  limits: {{f1: {{min: 0.5}}}}
  beat: [baseline]
"""
FIELDS = [
    "labels.check.limits.acuracy",
    "labels.teacher.model",
    "student.losses",
    "student.losses.hard.wieght",
    "gate.limits.f1",
    "gate.beat",
]


@pytest.mark.parametrize("more", ["", "evaluation: {bins: many}\ntemperature: 2\n"])
def test_mistakes_of_the_file_and_of_the_task_come_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str
) -> None:
    """Whether the sections are well-formed or not: metrics, arms, losses and models in the same run, with lines."""
    lines = _wrong(tmp_path, TEXT.format(task="text_classification") + more, capsys)
    named = [line.partition(":")[0] for line in lines]
    assert set(FIELDS) <= set(named)
    assert ({"evaluation.bins", "temperature"} <= set(named)) is bool(more)
    by_field = dict(zip(named, lines, strict=True))
    assert by_field["gate.limits.f1"].endswith("did you mean macro_f1? [line 10]")
    assert by_field["student.losses"].endswith("did you mean soft? [line 8]")
    if more:
        assert "`temperature` belongs in student.losses.soft or sequences [line 13]" in by_field["temperature"]


def test_an_unknown_task_is_a_mistake_among_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What only the task could check is left for the next run."""
    lines = _wrong(tmp_path, TEXT.format(task="text_clasification") + "seed: x\n", capsys)
    assert [line.partition(":")[0] for line in lines] == ["task", "seed"] or len(lines) == 2
    assert any("did you mean text_classification" in line for line in lines)


def test_the_schema_in_the_repository_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Write it anew after a change of the configuration: ray-distill schema > jobs/campaign.schema.json."""
    assert cli.main(["schema"]) == 0
    printed = capsys.readouterr().out
    assert printed == SCHEMA.read_text(encoding="utf-8")
    jsonschema.Draft202012Validator.check_schema(json.loads(printed))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(campaign_schema())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_names_the_schema_and_keeps_it(path: Path, validator: jsonschema.Draft202012Validator) -> None:
    """The first line is the one that editors read."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / named).resolve() == SCHEMA
    assert list(validator.iter_errors(open_document(path).value)) == []


def test_the_campaign_of_the_readme_keeps_the_schema(validator: jsonschema.Draft202012Validator) -> None:
    """A reader copies it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text[text.index("```yaml\n") + 8 :]
    value = yaml.safe_load(block[: block.index("```")])
    assert list(validator.iter_errors(value)) == []
    parse_config(value)


@pytest.mark.parametrize(
    "change",
    [
        {"gates": {}},
        {"seed": "x"},
        {"task": "poems"},
        {"student": {"losses": {"sooft": {}}}},
        {"student": {"losses": {"soft": {"temprature": 2}}}},
        {"student": {"training": {"learning_rate": "fast"}}},
        {"student": {"training": {"schedule": "cosin"}}},
        {"snapshot": {}},
    ],
)
def test_an_editor_marks_what_the_command_would_refuse(
    change: dict[str, Any], validator: jsonschema.Draft202012Validator
) -> None:
    """Unknown names in every section, losses included."""
    value: dict[str, Any] = {
        "campaign": "c",
        "task": "text_classification",
        "snapshot": {"source": "r"},
        "labels": {"teacher": {"model": "m"}},
    }
    assert list(validator.iter_errors(value)) == []
    assert list(validator.iter_errors(value | change)) != []


def test_a_task_of_the_users_own_may_have_losses_of_its_own(validator: jsonschema.Draft202012Validator) -> None:
    """The schema cannot name them."""
    value = {
        "campaign": "c",
        "task": "mine.tasks:own",
        "snapshot": {"source": ["r", "s"]},
        "labels": {"teacher": {"model": "m"}},
        "student": {"losses": {"own": {"weight": 1, "any": 2}}, "training": {"workers": [1, 2], "learning_rate": 0.1}},
    }
    assert list(validator.iter_errors(value)) == []
