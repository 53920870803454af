"""Run the quickstart: train a teacher of real digits, then run a campaign to its verdict.

The teacher is trained on rows that it does not label.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ray_distill.artifacts import ModelReport
from ray_distill.cli import render_results
from ray_distill.config import Campaign, Splits, parse_config
from ray_distill.examples import mnist
from ray_distill.runtime import campaign
from ray_distill.runtime.campaign import CampaignResult
from ray_distill.runtime.core import connection, console
from ray_distill.runtime.core.at_work import LOCK
from ray_distill.storage.locks import at_work
from ray_distill.tracking.sqlite_uri import sqlite_uri

#: Few transfer rows, where the teacher's distributions are worth most beside its choices, and many test rows, which can
#: establish that.
SHARES = Splits(train=0.20, validation=0.05, calibration=0.05, test=0.70)


@dataclass(frozen=True, kw_only=True)
class QuickstartResult:
    """The campaign's result, in the quickstart's short form."""

    result: CampaignResult

    def to_json(self) -> str:
        """Return one line of JSON: models, labels, verdict, and the run that records them."""
        result, models = self.result, self.result.report.models
        return json.dumps(
            {
                "teacher": _short(models["teacher"]),
                "student": _short(models["student"]),
                "baseline_hard_labels": _short(models["baseline_hard_labels"]),
                "baseline_teacher_hard_labels": _short(models["baseline_teacher_hard_labels"]),
                "ceiling_true_labels": _short(models["ceiling_true_labels"]),
                "labels": {
                    "rows": int(result.labelled["rows"]),
                    "bytes": int(result.labelled["bytes"]),
                    "rows_per_second": round(result.labelled["rows_per_second"], 1),
                },
                "verdict": str(result.decision.verdict),
                "reasons": list(result.decision.reasons),
                "report": result.report.url,
                "tracking_uri": result.tracking_uri,
                "run_id": result.run_id,
            }
        )


def quickstart(output: str, address: str | None = None) -> QuickstartResult:
    """Run the quickstart, or continue an interrupted one."""
    folder = Path(output).resolve()
    with at_work(str(folder), LOCK, "ray-distill quickstart"):
        config = prepare(folder)
        with connection.connected(address):
            return QuickstartResult(result=campaign.run(config))


def prepare(folder: Path) -> Campaign:
    """Write the sources, the teacher and ``campaign.yaml``; return the campaign.

    Existing sources and an existing teacher are reused.
    """
    marker = folder / "teacher" / "preprocessor_config.json"
    teacher, traffic = folder / "teacher.parquet", folder / "traffic.parquet"
    if marker.is_file() and traffic.is_file():
        console.report("quickstart: skipped digits and teacher, which exist already", skipped="teacher")
    else:
        console.report("quickstart: writing 5,000 digits and training the teacher on 1,800 of them (about a minute)")
        mnist.write_sources(folder, seed=mnist.SEED, shares=SHARES)
        mnist.train_teacher(teacher, folder / "teacher", seed=mnist.SEED)
    value = config_of(folder, teacher, traffic)
    (folder / "campaign.yaml").write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return parse_config(value, origin=str(folder / "campaign.yaml"))


def config_of(folder: Path, teacher: Path, traffic: Path) -> dict[str, Any]:
    """Return the campaign's configuration, as written to its YAML file."""
    return {
        "campaign": "quickstart-digits",
        "task": mnist.TASK,
        "seed": mnist.SEED,
        "output": str(folder),
        "snapshot": {
            "source": str(traffic),
            "columns": {"image": "image", "label": "digit"},
            "classes": list(mnist.CLASSES),
            "splits": SHARES.model_dump(),
            "exclude": [str(teacher)],
        },
        "labels": {
            "teacher": {"model": str(folder / "teacher")},
            "hidden": {"layers": [-1], "pool": "mean"},
            "check": {"limits": {"accuracy": {"min": 0.95}}},
            "unit_rows": 256,
        },
        "student": {
            "model": {"from": "config", "overrides": mnist.STUDENT_OVERRIDES},
            # The default budget ends later, and tries rates; these are what it chose, in fewer passes.
            "training": {
                "epochs": 50,
                "global_batch": 32,
                "micro_batch": 32,
                "learning_rate": 1e-2,
                "cpus": 1,
                "zero_stage": 0,
                "evaluate_every": 50,
                "checkpoint_every": 500,
            },
            "ceiling": str(teacher),
        },
        "evaluation": {"severities": [1, 3], "latency_requests": 100},
        "gate": {
            "limits": {"accuracy": {"relative": 0.97, "margin": 0.01}, "ece": {"max": 0.05}},
            "beat": ["baseline_hard_labels"],
        },
        # Everything of the quickstart stays in its folder, whatever the environment names for other campaigns.
        "tracking": {"uri": sqlite_uri(folder / "mlflow.db"), "experiment": "quickstart-digits"},
    }


def plan(output: str) -> list[str]:
    """List the steps of the quickstart."""
    folder = Path(output).resolve()
    return [
        f"sources   5,000 digits → {folder}/traffic.parquet (3,200) and teacher.parquet (1,800)",
        f"teacher   a residual network trained on its 1,800 rows → {folder}/teacher",
        f"campaign  snapshot, label, train, evaluate, promote → {folder}; configured in {folder}/campaign.yaml",
        f"record    {sqlite_uri(folder / 'mlflow.db')}",
    ]


def show(outcome: QuickstartResult) -> str:
    """Render the outcome for a terminal."""
    return render_results.show_campaign(outcome.result)


def _short(model: ModelReport) -> dict[str, Any]:
    accuracy = model.metrics["accuracy"]
    return {
        "accuracy": round(accuracy.value, 4),
        "ci95": [round(accuracy.low, 4), round(accuracy.high, 4)],
        "parameters": model.efficiency.parameters,
        "latency_ms_p50": round(model.efficiency.latency_ms_p50, 3),
    }
