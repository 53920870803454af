"""Provoke each finding about a training by real campaigns of digits that are made to have it; a healthy one has none.

    python -m tests.golden.diagnoses FOLDER [NAMES]            all of them, or some

A campaign goes through all stages, on an embedded Ray; what is finished is not done again. The exit status is 1 if a
finding is missing, or if the healthy campaign has one.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from ray_distill.config import TeacherConfig, parse_config
from ray_distill.examples import mnist
from ray_distill.models.core.model import ModelParts
from ray_distill.models.io.load import load_model
from ray_distill.runtime import campaign
from ray_distill.runtime.core import connection
from tests.golden.hidden_table import say

#: Rows that the weak teacher was trained on.
WEAK_ROWS = 40
#: What every finding has somewhere, by which a healthy campaign is known.
FINDINGS = {
    "unfinished": "Validation losses still fell",
    "not all": "arms of which not all have converged",
    "over-fitted": "over-fits since step",
    "few rows": "more inputs without labels",
    "small": "too little capacity",
    "soft below hard": "Soft labels taught less than the teacher's hard labels",
    "unsure": "may be wrong where its choices are right",
    "true labels": "True labels alone taught more than the teacher",
    "weak teacher": "it is itself worse than the student",
    "class": "The teacher is weak on",
    "never": "has no row of",
    "uneven": "is far below its accuracy",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A campaign, by its difference from the healthy one."""

    expected: tuple[str, ...]
    """Names of `FINDINGS`."""
    changes: Mapping[str, Any]
    """By dotted path of the config."""


FEW = {"train": 0.05, "validation": 0.15, "calibration": 0.1, "test": 0.7}
CASES: Mapping[str, Case] = {
    "healthy": Case(expected=(), changes={}),
    "short": Case(
        expected=("unfinished",), changes={"student.training.epochs": 3, "student.training.learning_rate": 1e-3}
    ),
    "few-rows": Case(
        expected=("few rows",),
        changes={
            "snapshot.splits": FEW,
            "student.losses": {"soft": {"temperature": 1}},
            "student.training.epochs": 150,
            "student.training.learning_rate": 1e-2,
            "student.model.overrides": {"embedding_size": 48, "hidden_sizes": [48, 96], "depths": [2, 2]},
        },
    ),
    "small": Case(
        expected=("small",),
        changes={"student.model.overrides": {"embedding_size": 1, "hidden_sizes": [1, 1], "depths": [1, 1]}},
    ),
    "misleading": Case(
        expected=("soft below hard", "unsure"),
        changes={
            "labels.teacher.model": "tests.golden.diagnoses:misleading",
            "student.model": {"from": "module", "model": "tests.golden.diagnoses:student"},
            "student.losses": {"soft": {}},
        },
    ),
    "weak-teacher": Case(
        expected=("true labels", "weak teacher", "over-fitted"),
        changes={
            "labels.teacher.model": "weak",
            "snapshot.source": "teacher.parquet",
            "snapshot.exclude": ["weak.parquet"],
            "labels.check": {"beat_majority": False},
        },
    ),
    "blind": Case(expected=("class", "never"), changes={"labels.teacher.model": "blind"}),
    "rare": Case(
        expected=("uneven",), changes={"labels.teacher.model": "near-sighted", "snapshot.source": "rare.parquet"}
    ),
}
#: By teacher: the digits that it takes for others.
MISTAKES: Mapping[str, Mapping[str, str]] = {"blind": {"8": "3"}, "near-sighted": {"7": "1", "8": "3", "9": "4"}}
#: Of the digits that the near-sighted one does not see, one row in so many is in the rare traffic.
RARE = 8


class Misleading(nn.Module):
    """Keeps the choices of a network, and gives the class behind each choice almost as much."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, output_hidden_states: bool = False, **features: Any) -> Any:
        """As `ModelParts` asks."""
        choice_B = self.network(**features).logits.argmax(dim=1)
        p_BV = torch.full((len(choice_B), len(mnist.CLASSES)), 1e-3)
        for offset, share in ((0, 0.51), (1, 0.49)):
            p_BV[torch.arange(len(choice_B)), (choice_B + offset) % len(mnist.CLASSES)] = share
        return SimpleNamespace(logits=p_BV.log(), hidden_states=None)


def misleading(folder: str) -> ModelParts:
    """Return the teacher of digits with distributions that are wrong where its choices are right."""
    model = load_model(TeacherConfig(model=folder), task=mnist.TASK)
    return ModelParts(module=Misleading(model.module), processor=model.processor, classes=mnist.CLASSES)


def student(folder: str) -> ModelParts:
    """Return the student of the other cases: a function as teacher has no config to make it of."""
    config = ResNetConfig.from_pretrained(folder, **mnist.STUDENT_OVERRIDES)
    like = load_model(TeacherConfig(model=folder), task=mnist.TASK)
    return ModelParts(module=ResNetForImageClassification(config), processor=like.processor, classes=mnist.CLASSES)


def prepare(folder: Path) -> None:
    """Write digits, as they are and with three of them rare, and the teachers: a good one and three that are not."""
    if (folder / "prepared").exists():
        return
    mnist.prepare(folder)
    rows = pq.read_table(folder / "teacher.parquet")
    pq.write_table(rows.slice(0, WEAK_ROWS), folder / "weak.parquet")
    for name, mistakes in MISTAKES.items():
        digits = [mistakes.get(digit, digit) for digit in rows["digit"].to_pylist()]
        pq.write_table(rows.set_column(1, "digit", pa.array(digits)), folder / f"{name}.parquet")
    for name in ("weak", *MISTAKES):
        mnist.train_network(
            folder / f"{name}.parquet",
            folder / name,
            label="digit",
            classes=mnist.CLASSES,
            config=mnist.TEACHER_CONFIG,
            seed=mnist.SEED,
        )
    traffic = pq.read_table(folder / "traffic.parquet")
    unseen = MISTAKES["near-sighted"]
    kept = [row % RARE == 0 or digit not in unseen for row, digit in enumerate(traffic["digit"].to_pylist())]
    pq.write_table(traffic.filter(pa.array(kept)), folder / "rare.parquet")
    (folder / "prepared").touch()


def config_of(folder: Path, name: str) -> dict[str, Any]:
    """Return the config of a case."""
    found: dict[str, Any] = {
        "campaign": name,
        "task": mnist.TASK,
        "seed": mnist.SEED,
        "output": str(folder / "runs" / name),
        "snapshot": {
            "source": "traffic.parquet",
            "columns": {"image": "image", "label": "digit"},
            "splits": mnist.SPLIT_SHARES.model_dump(),
            "exclude": ["teacher.parquet"],
        },
        "labels": {"teacher": {"model": "teacher"}},
        "student": {
            "model": {"from": "config", "overrides": dict(mnist.STUDENT_OVERRIDES)},
            "training": {"engine": "torch"},
        },
        "evaluation": {"corruptions": []},
        "tracking": {"enabled": False},
    }
    for path, value in CASES[name].changes.items():
        *parents, last = path.split(".")
        section = found
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    snapshot, teacher, model = found["snapshot"], found["labels"]["teacher"], found["student"]["model"]
    snapshot["source"] = str(folder / snapshot["source"])
    snapshot["exclude"] = [str(folder / one) for one in snapshot["exclude"]]
    if ":" in teacher["model"]:
        teacher["arguments"] = model["arguments"] = {"folder": str(folder / "teacher")}
    else:
        teacher["model"] = str(folder / teacher["model"])
    return found


def main() -> int:
    """Run the campaigns, and print each with what it was told."""
    folder, names = Path(sys.argv[1]).resolve(), sys.argv[2:] or list(CASES)
    prepare(folder)
    wrong = []
    for name in names:
        with connection.connected():
            result = campaign.run(parse_config(config_of(folder, name)))
        notes = " ".join(result.report.notes)
        told = tuple(finding for finding, words in FINDINGS.items() if words in notes)
        say(f"{name}: {result.decision.verdict}; findings: {', '.join(told) or 'none'}")
        for note in result.report.notes:
            say(f"    {note}")
        missing = [one for one in CASES[name].expected if one not in told]
        if missing or (told and not CASES[name].expected):
            wrong.append(f"{name}: expected {', '.join(CASES[name].expected) or 'none'}, found {', '.join(told)}")
    for line in wrong:
        say(f"WRONG {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
