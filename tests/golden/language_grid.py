"""The golden grid of language models: the defaults beside eight settings by hand, at equal teacher positions.

    python -m tests.golden.language_grid FOLDER                          FOLDER as `language_table` has it
    python -m tests.golden.language_grid FOLDER --rows 160 --keep 2 --max-length 32        a small part of it

A campaign that names teacher, source and the student's layers stores draws, tries rates, learns at temperature 1, and
ends when nothing improves. By hand are two stored forms (the 50 likeliest tokens, 16 of them and 32 draws), two rates
and two weights of the true tokens; no other temperature, for draws allow 1 alone, and at 2 the 50 likeliest tokens have
0.19 of the teacher's mass, which is refused. Every student learns from the same documents, and one by hand makes as
many passes over them as the defaults took: none has seen more of the teacher. What is finished is not done again.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ray_distill.artifacts import LabelSetRef, StudentRef
from ray_distill.config import Campaign, parse_config
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.examples.docstrings import ROWS, prepare
from ray_distill.models.core.checkpoint_files import read_facts
from ray_distill.models.io.load import load_model
from ray_distill.runtime import campaign
from ray_distill.runtime.core import connection
from ray_distill.runtime.core.session import absolute
from ray_distill.runtime.model_checks.decide import decided
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.students.job import TrainingJob
from ray_distill.students.run import run_arms
from ray_distill.students.telemetry.reporter import SilentReporter
from ray_distill.tasks.answers.tokens.evaluation.measures import compare, measure
from ray_distill.tasks.answers.tokens.evaluation.predictions import predict_documents
from ray_distill.tasks.catalogue import TASKS
from tests.golden.hidden_table import HOW, cell, say

TASK, SEED, DEFAULTS = "causal_lm", 3, "defaults"
SPLITS = {"train": 0.55, "validation": 0.1, "calibration": 0.05, "test": 0.3}
METRICS = {"kl_from_teacher": "KL from teacher, nats", "nll": "NLL, nats", "ece": "ECE", "agreement": "top-1 agreement"}
RATES = (5e-4, 1.5e-3)
TOP: Mapping[str, Any] = {"estimator": "topk", "k": 50, "encoding": "compact"}
BOTH: Mapping[str, Any] = {"estimator": "hybrid", "k": 16, "draws": 32, "encoding": "compact"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Settings by hand."""

    name: str
    signal: Mapping[str, Any]
    losses: Mapping[str, Any]
    rate: float


GRID = tuple(
    Cell(name=f"{words}, rate {rate:g}", signal=signal, losses=losses, rate=rate)
    for words, signal, losses in (
        ("top 50", TOP, {"soft": {}}),
        ("top 50, true tokens at 0.5", TOP, {"soft": {"weight": 0.5}, "hard": {"weight": 0.5}}),
        ("top 16 and 32 draws", BOTH, {"soft": {}}),
        ("top 16 and 32 draws, true tokens at 0.5", BOTH, {"soft": {"weight": 0.5}, "hard": {"weight": 0.5}}),
    )
    for rate in RATES
)


def main() -> None:
    """Label and train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS, help="docstrings in all")
    parser.add_argument("--keep", type=int, default=4, help="layers of the teacher that the student has")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a docstring that are read")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    prepare(folder, asked.rows)
    torch.set_num_threads(asked.threads)
    place = folder / f"grid-{asked.rows}-{asked.keep}-{asked.max_length}"
    student: dict[str, Any] = {"model": {"from": "teacher_layers", "keep": asked.keep}}
    config = _config(folder, place, student, length=asked.max_length)
    for signal in (None, TOP, BOTH):  # before anything else takes the cores
        _label(_config(folder, place, student, signal, length=asked.max_length))
    refs = {DEFAULTS: _train(config, _label(config), place / DEFAULTS)}
    facts = read_facts(refs[DEFAULTS].url)
    told = ("passes", "steps", "learning_rate", "global_batch", "tried_rates", "best_epoch")
    say(f"defaults: {', '.join(f'{name} {facts[name]}' for name in told)}")
    for number, one in enumerate(GRID):
        training = {"epochs": facts["passes"], "learning_rate": one.rate}
        changed = {**student, "losses": one.losses, "training": training}
        own = _config(folder, place, changed, one.signal, length=asked.max_length)
        refs[one.name] = _train(own, _label(own), place / f"cell-{number}")
        say(f"{one.name}: trained")
    _show(config, refs, _label(config))


def _config(
    folder: Path, place: Path, student: Mapping[str, Any], signal: Mapping[str, Any] | None = None, *, length: int
) -> Campaign:
    labels: dict[str, Any] = {"teacher": {"model": str(folder / "teacher"), "max_length": length}}
    form = DEFAULTS if signal is None else str(signal["estimator"])
    if signal is not None:
        labels["signal"] = dict(signal)
    return absolute(
        decided(
            parse_config(
                {
                    "campaign": "grid",
                    "task": TASK,
                    "seed": SEED,
                    "output": str(place / "runs"),
                    "snapshot": {"source": str(folder / "traffic.jsonl"), "splits": SPLITS},
                    "labels": {**labels, "store": str(place / f"labels-{form}"), "resources": {"batch": 16}},
                    "student": {**student, "training": {"engine": "torch", **student.get("training", {})}},
                    "tracking": {"enabled": False},
                }
            )
        )
    )


def _label(config: Campaign) -> LabelSetRef:
    kept = Path(f"{config.store_url.removeprefix('file://')}.json")
    if not kept.exists():
        with connection.connected():
            kept.write_text(campaign.label(config, campaign.snapshot(config)).to_json())
    return LabelSetRef.from_json(kept.read_text())


def _train(config: Campaign, labels: LabelSetRef, output: Path) -> StudentRef:
    job = TrainingJob(config=config, labels=labels, seed=SEED, arms=("student",), resume=True, output=str(output))
    return run_arms(job, SilentReporter())[0]


def _show(config: Campaign, refs: Mapping[str, StudentRef], labels: LabelSetRef) -> None:
    models = {"teacher": load_model(config.labels.teacher, task=TASK)}
    models |= {name: load_model(ref.url, task=TASK) for name, ref in refs.items()}
    rows = open_snapshot(labels.snapshot).read("test", columns=["row_id", "text", "count"])
    with torch.inference_mode():
        tables = predict_documents(Panel(task=TASKS[TASK], models=models, batch=8, bins=HOW.bins), rows)
    say(f"\n{rows.num_rows} test documents, {int(sum(tables['teacher']['tokens'].to_pylist())):,} tokens\n")
    say(f"| | {' | '.join(METRICS.values())} | KL less that of the defaults |")
    say("|" + "---|" * (len(METRICS) + 2))
    for name in refs:
        found = measure(tables[name], HOW)
        cells = [cell([found[metric]]) for metric in METRICS]
        less = compare(tables[name], tables[DEFAULTS], HOW)["kl_from_teacher"]
        say(f"| {name} | {' | '.join(cells)} | {'–' if name == DEFAULTS else cell([less], sign='+')} |")


if __name__ == "__main__":
    sys.exit(main())
