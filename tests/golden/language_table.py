"""The golden table of language models: what a student learns from each way to store its teacher, at equal tokens.

    python -m tests.golden.language_table FOLDER            the whole table: two minutes a student, and the labels
    python -m tests.golden.language_table FOLDER --rows 80 --arms topk --seeds 0 --rates 1e-3       a small part of it

The teacher is SmolLM2-135M-Instruct, the texts are docstrings, the student is four of the teacher's thirty layers
(`jobs/configs/docstrings.yaml`). Labels are taken by `label` with real Ray; students are trained one after the other by
`students.run` in this process. What is finished is not done again: the same command goes on where it was.

The rate is chosen for the first arm, hard labels, by validation NLL of its first seed, and is every arm's: if it
favours one of them, then that one. A number is the mean over the seeds; its
interval is of the test documents (the mean of the seeds' own, which is no narrower than that of the mean), and behind
± is half the range of the seeds.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ray_distill.artifacts import LabelSetRef, SnapshotRef, StudentRef
from ray_distill.config import Campaign, load_config, parse_config
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.examples.docstrings import ROWS, prepare
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.models.io.load import load_model
from ray_distill.runtime import campaign
from ray_distill.runtime.core import connection
from ray_distill.runtime.core.session import absolute
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.students.job import TrainingJob
from ray_distill.students.run import run_arms
from ray_distill.students.telemetry.reporter import SilentReporter
from ray_distill.tasks.answers.tokens.evaluation.measures import compare, measure
from ray_distill.tasks.answers.tokens.evaluation.predictions import predict_documents
from ray_distill.tasks.catalogue import TASKS
from tests.golden.hidden_table import cell, say

CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "docstrings.yaml"
STORES: Mapping[str, tuple[str, ...]] = {
    "topk": ("labels.signal.estimator=topk", "labels.signal.k=50"),
    "sampled": ("labels.signal.estimator=sampled", "labels.signal.draws=50"),
    "hybrid": ("labels.signal.estimator=hybrid", "labels.signal.k=16", "labels.signal.draws=32"),
}
#: Name: store, losses, how the table calls it.
ARMS: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    "hard": ("topk", {"hard": {}}, "hard labels only"),
    "renormalised": ("topk", {"soft": {"tail": "renormalised"}}, "top 50, renormalised"),
    "topk": ("topk", {"soft": {}}, "top 50, tail bucket"),
    "sampled": ("sampled", {"soft": {}}, "50 draws"),
    "hybrid": ("hybrid", {"soft": {}}, "top 16 and 32 draws"),
}
METRICS = {"kl_from_teacher": "KL from teacher, nats", "nll": "NLL, nats", "ece": "ECE", "agreement": "top-1 agreement"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is wanted of the table."""

    folder: Path
    rows: int
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    keep: int


def main(argv: Sequence[str] | None = None) -> None:
    asked = _asked(argv)
    prepare(asked.folder, asked.rows)
    torch.set_num_threads(2)
    stores = {name: _label(asked, name) for name in dict.fromkeys(ARMS[arm][0] for arm in asked.arms)}
    students, rates = {}, asked.rates
    for arm in asked.arms:
        students[arm], rates = _train(asked, arm, stores[ARMS[arm][0]], rates)
    _measure(asked, stores, students)


def _asked(argv: Sequence[str] | None) -> Asked:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS, help="docstrings in all")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=tuple(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--rates", nargs="+", type=float, default=(5e-4, 1.5e-3))
    parser.add_argument("--keep", type=int, default=4, help="layers of the teacher that the student has")
    found = parser.parse_args(argv)
    return Asked(
        folder=found.folder.resolve(),
        rows=found.rows,
        arms=tuple(found.arms),
        seeds=tuple(found.seeds),
        rates=tuple(found.rates),
        keep=found.keep,
    )


def _config(asked: Asked, store: str, *overrides: str) -> Campaign:
    folder = asked.folder
    return absolute(
        load_config(
            CONFIG,
            (
                f"snapshot.source={folder / 'traffic.jsonl'}",
                f"labels.teacher.model={folder / 'teacher'}",
                f"output={folder / f'runs-{asked.rows}'}",
                f"labels.store={folder / f'labels-{asked.rows}-{store}'}",
                "tracking.enabled=false",
                f"student.model.keep={asked.keep}",
                *STORES[store],
                *overrides,
            ),
        )
    )


def _label(asked: Asked, store: str) -> LabelSetRef:
    """The teacher's labels in this form, taken by the campaign's own stages."""
    config = _config(asked, store)
    kept = asked.folder / f"labels-{asked.rows}-{store}.json"
    if kept.exists():
        return LabelSetRef.from_json(kept.read_text())
    with connection.connected():
        ref = campaign.label(config, campaign.snapshot(config))
    kept.write_text(ref.to_json())
    return ref


def _train(
    asked: Asked, arm: str, labels: LabelSetRef, rates: tuple[float, ...]
) -> tuple[list[StudentRef], tuple[float, ...]]:
    """A student of each seed, and the rate: of all that are asked for the best for the first seed."""
    found = []
    for seed in asked.seeds:
        ref = _train_one(asked, arm, labels, seed, rates)
        rates = (files.read_json(files.join(ref.url, "ray_distill.json"))["metadata"]["learning_rate"],)
        say(f"{arm}, seed {seed}: rate {rates[0]:g}, {ref.url}")
        found.append(ref)
    return found, rates


def _train_one(asked: Asked, arm: str, labels: LabelSetRef, seed: int, rates: Sequence[float]) -> StudentRef:
    store, losses, _ = ARMS[arm]
    config = _config(asked, store, "student.training.engine=torch", f"student.training.learning_rate={list(rates)}")
    value = config.model_dump(mode="json", by_alias=True)
    value["student"]["losses"] = dict(losses)
    job = TrainingJob(
        config=parse_config(value),
        labels=labels,
        seed=seed,
        arms=("student",),
        resume=True,
        output=str(asked.folder / f"students-{asked.rows}" / f"{arm}-{seed}"),
    )
    return run_arms(job, SilentReporter())[0]


def _measure(asked: Asked, stores: Mapping[str, LabelSetRef], students: Mapping[str, Sequence[StudentRef]]) -> None:
    config = _config(asked, next(iter(stores)))
    models = {"teacher": load_model(config.labels.teacher, task="causal_lm")}
    models |= {
        f"{arm}/{seed}": load_model(ref.url, task="causal_lm")
        for arm, refs in students.items()
        for seed, ref in zip(asked.seeds, refs, strict=True)
    }
    snapshot: SnapshotRef = next(iter(stores.values())).snapshot
    rows = open_snapshot(snapshot).read("test", columns=["row_id", "text", "count"])
    with torch.inference_mode():
        tables = predict_documents(Panel(task=TASKS["causal_lm"], models=models, batch=8, bins=15), rows)
    how = Resampling(seed=0, bootstrap=1000, bins=15)
    measured = {name: measure(table, how) for name, table in tables.items()}
    theirs = measured["teacher"]
    tokens = int(sum(tables["teacher"]["tokens"].to_pylist()))
    say(
        f"\n{rows.num_rows} test documents, {tokens:,} tokens; the teacher: NLL {theirs['nll'].value:.3f}, "
        f"ECE {theirs['ece'].value:.3f}\n"
    )
    say(f"| labels | bytes a token | {' | '.join(METRICS.values())} | KL less that of top 50, tail bucket |")
    say("|" + "---|" * (len(METRICS) + 3))
    for arm in asked.arms:
        own = [f"{arm}/{seed}" for seed in asked.seeds]
        cells = [cell([measured[name][metric] for name in own]) for metric in METRICS]
        against = [f"topk/{seed}" for seed in asked.seeds]
        less = (
            "–"
            if arm == "topk" or against[0] not in tables
            else cell(
                [
                    compare(tables[one], tables[other], how)["kl_from_teacher"]
                    for one, other in zip(own, against, strict=True)
                ],
                sign="+",
            )
        )
        size = "–" if arm == "hard" else f"{_bytes(stores[ARMS[arm][0]]):.1f}"
        say(f"| {ARMS[arm][2]} | {size} | {' | '.join(cells)} | {less} |")
    say(
        "\n"
        + json.dumps(
            {
                name: {metric: found[metric].value for metric in METRICS if metric in found}
                for name, found in measured.items()
            }
        )
    )


def _bytes(labels: LabelSetRef) -> float:
    """Bytes of the label files a labelled token, Parquet and row ids included."""
    store = open_store(labels.store)
    store.log.refresh()
    found = open_label_set(labels).read()[1].distributions
    assert found is not None
    return store.ledger.bytes_written(labels.log_length) / len(found.position)


if __name__ == "__main__":
    main()
