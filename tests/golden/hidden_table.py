"""The golden table of hidden states: what a student learns from them beside soft labels, or from them alone.

    python -m tests.golden.hidden_table FOLDER                  both tables
    python -m tests.golden.hidden_table FOLDER --data image --arms soft soft+cka --seeds 0     a small part of them

Text: MiniLM and 20 Newsgroups; images: a residual network and MNIST digits; students as in `jobs/configs`, trained for
a share of the epochs there. The teacher's last layer is stored on a PCA basis, once pooled and once a token (for
`relation`), beside the same soft labels; text is cut to as many tokens for the teacher as for the student, whose tokens
must be the teacher's. All is done in this process, without Ray: labels are taken unit by unit, then `students.run`
trains one student after the other by plain torch in one thread. What is finished is not done again: the same command
goes on where it was.

``soft`` is the golden run without its hidden loss: soft labels, and of text 400 true labels beside them, at weight 0.5;
``hard`` is those few true labels alone (400 texts, 200 images). An arm ``soft+KIND`` has the weight of its hidden loss
chosen by validation NLL of its first seed, where there is a choice (images); ``hard+KIND``, hidden states without soft
labels, takes the same. Its few true labels are there for the classifier's head, which hidden states do not teach.

A number is the mean over the seeds; its interval is of the test rows (the mean of the seeds' own), and behind ± is half
the range of the seeds. Differences are paired, row by row and seed by seed.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ray_distill.artifacts import Estimate, LabelSetRef
from ray_distill.config import Campaign, load_config, parse_config
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.evaluation.predict.rows import join_predictions, predict_rows
from ray_distill.examples import mnist, newsgroups
from ray_distill.labels.format.fitted_arrays import read_fits, write_fits
from ray_distill.labels.store.label_store import create_or_open
from ray_distill.labels.store.writer import write_attempt
from ray_distill.models.core.model import Model
from ray_distill.models.heads.fit_head import fitted_rows_url
from ray_distill.models.io.load import load_model, load_processor
from ray_distill.runtime import campaign
from ray_distill.runtime.core.session import absolute
from ray_distill.runtime.labelling.batching import answer_all, request_of
from ray_distill.runtime.labelling.calibrate_store import calibrate, with_found
from ray_distill.runtime.labelling.encode_write import read_inputs
from ray_distill.runtime.labelling.identify_teacher import make_manifest, prepare_teacher
from ray_distill.runtime.stages.label import head_of
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.students.job import TrainingJob
from ray_distill.students.run import run_arms
from ray_distill.students.telemetry.curves import curve_url, read_curve
from ray_distill.students.telemetry.reporter import SilentReporter
from ray_distill.tasks.answers.classes.evaluation.measures import compare, measure
from ray_distill.tasks.answers.classes.evaluation.predictions import log_probabilities
from ray_distill.tasks.catalogue import TASKS
from ray_distill.teachers.engines import open_teacher

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
#: By name the loss and its settings, and how its states are stored.
KINDS: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    "pca": ("hidden", {"kind": "pca", "layers": "last"}, "mean"),
    "cosine": ("hidden", {"kind": "cosine", "layers": "last"}, "mean"),
    "cka": ("cka", {"layers": "last"}, "mean"),
    "rkd_distance": ("rkd_distance", {"layers": "last"}, "mean"),
    "rkd_angle": ("rkd_angle", {"layers": "last"}, "mean"),
    "relation": ("relation", {"layers": "last"}, "token"),
}
ARMS = ("soft", "hard", *(f"{first}+{kind}" for first in ("soft", "hard") for kind in KINDS))
METRICS = {"accuracy": "accuracy", "kl_from_teacher": "KL from teacher, nats", "ece": "ECE"}
HOW = Resampling(seed=0, bootstrap=1000, bins=15)


@dataclass(frozen=True, kw_only=True)
class Data:
    """A golden run."""

    config: str
    prepare: Callable[[Path], Path]
    sources: Mapping[str, str]
    """Settings that name what ``prepare`` has made, below its folder."""
    settings: tuple[str, ...]
    """What differs from the golden run."""
    soft: Mapping[str, Any]
    """The golden run's losses without its hidden one."""
    weights: tuple[float, ...]
    """Of a hidden loss beside them, to choose from."""


DATA: Mapping[str, Data] = {
    "text": Data(
        config="newsgroups.yaml",
        prepare=newsgroups.prepare,
        soft={"soft": {}, "hard": {"weight": 0.5}},
        sources={"snapshot.source": "traffic.parquet", "labels.teacher.model": "minilm"},
        settings=(
            "labels.teacher.max_length=32",
            "labels.hidden.layers=[-1]",
            "labels.hidden.rank=64",
            "student.model.keep=1",
            "student.model.max_length=32",
            "student.training.epochs=2",
            "student.training.global_batch=32",
            "student.training.learning_rate=0.001",
        ),
        weights=(1.0,),
    ),
    "image": Data(
        config="digits.yaml",
        prepare=mnist.prepare,
        soft={"soft": {"temperature": 4}},
        sources={"snapshot.source": "traffic.parquet", "labels.teacher.model": "teacher"},
        settings=("labels.hidden.rank=32", "student.training.epochs=6"),
        weights=(0.1, 1.0),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is wanted of the tables."""

    folder: Path
    data: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    weights: tuple[float, ...] | None
    """Of hidden losses; None: each data's own."""


def main() -> None:
    asked = _asked()
    torch.set_num_threads(1)
    for data in asked.data:
        labels = _labels(asked, data)
        weights = {arm: _train_arm(asked, data, arm, labels) for arm in asked.arms}
        _tell(asked, data, labels, weights)


def _asked() -> Asked:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", nargs="+", choices=DATA, default=tuple(DATA))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--weights", nargs="+", type=float, help="of a hidden loss beside soft's 1, to choose from")
    found = parser.parse_args()
    return Asked(
        folder=found.folder.resolve(),
        data=tuple(found.data),
        arms=tuple(found.arms),
        seeds=tuple(found.seeds),
        weights=None if found.weights is None else tuple(found.weights),
    )


def _config(asked: Asked, data: str, pool: str = "mean") -> Campaign:
    found, folder = DATA[data], asked.folder / data
    return absolute(
        load_config(
            CONFIGS / found.config,
            (
                *(f"{name}={folder / path}" for name, path in found.sources.items()),
                *found.settings,
                *(
                    (f"snapshot.exclude=[{folder / 'teacher.parquet'}]", "student.ceiling=null")
                    if data == "image"
                    else ()
                ),
                f"output={folder / 'runs'}",
                f"labels.store={folder / f'labels-{pool}'}",
                f"labels.hidden.pool={pool}",
                "tracking.enabled=false",
                "student.training.engine=torch",
                "student.training.evaluate_every=100000",
                "student.training.checkpoint_every=100000",
                "student.training.cpus=1",
            ),
        )
    )


def _labels(asked: Asked, data: str) -> dict[str, LabelSetRef]:
    """The teacher's labels, by how its states are pooled."""
    if not (asked.folder / data / "traffic.parquet").exists():
        DATA[data].prepare(asked.folder / data)
    found = dict[str, LabelSetRef]()
    for pool in ("mean", "token"):
        kept = asked.folder / data / f"labels-{pool}.json"
        if not kept.exists():
            head_url = head_of(found["mean"].store) if found else None
            kept.write_text(label_here(_config(asked, data, pool), head_url).to_json())
            say(f"{data}: labelled, hidden states by {pool}")
        found[pool] = LabelSetRef.from_json(kept.read_text())
    return found


def label_here(config: Campaign, head_url: str | None, seconds: list[float] | None = None) -> LabelSetRef:
    """Label what the store lacks of the campaign's snapshot, unit by unit, as the stages do on a cluster.

    The seconds of each unit are appended to ``seconds``.
    """
    snapshot = campaign.snapshot(config)
    facts = prepare_teacher(config, snapshot, head_url)
    wanted = make_manifest(config, facts)
    if not files.exists(files.join(config.store_url, "store.json")):
        found = calibrate(config, snapshot, wanted)
        wanted = with_found(wanted, found, write_fits(config.store_url, found.fits))
    store = create_or_open(config.store_url, wanted)
    task, teacher = TASKS[config.task], open_teacher(config.labels.teacher, task=config.task, head_url=facts.head_url)
    ask = request_of(store.manifest, read_fits(store.url, store.manifest.fits))
    processor = load_processor(config.labels.teacher, task=config.task)
    for unit in store.pending(open_snapshot(snapshot)):
        began = time.monotonic()
        encoded = task.inputs.encode(read_inputs(snapshot, unit, task.inputs.column), processor)
        row_ids, signal, unusable = answer_all(teacher, encoded, ask, store.manifest.batch)
        rejected = [*unusable, *((row.row_id, row.reason) for row in encoded.rejected)]
        store.commit(
            [write_attempt(config.store_url, store.manifest, unit, row_ids=row_ids, signal=signal, rejected=rejected)]
        )
        if seconds is not None:
            seconds.append(time.monotonic() - began)
    return store.ref(open_snapshot(snapshot))


def _train_arm(asked: Asked, data: str, arm: str, labels: Mapping[str, LabelSetRef]) -> float:
    """A student of each seed; returns the weight of the hidden loss, 0 where there is none."""
    first, _, kind = arm.partition("+")
    if not kind:
        chosen = 0.0
    elif first == "hard" and f"soft+{kind}" in asked.arms:
        chosen = _chosen(asked, data, f"soft+{kind}", labels)
    else:
        chosen = _chosen(asked, data, arm, labels)
    for seed in asked.seeds:
        _train(asked, data, arm, chosen, seed, labels)
    return chosen


def _chosen(asked: Asked, data: str, arm: str, labels: Mapping[str, LabelSetRef]) -> float:
    weights = asked.weights or DATA[data].weights
    if len(weights) == 1:
        return weights[0]
    return min(weights, key=lambda weight: _train(asked, data, arm, weight, asked.seeds[0], labels)["validation"])


def _train(
    asked: Asked, data: str, arm: str, weight: float, seed: int, labels: Mapping[str, LabelSetRef]
) -> dict[str, float]:
    """Train one student, keep its answers for the test rows, and forget it; facts of it."""
    name, results = f"{arm}@{weight:g}-{seed}", asked.folder / data / "results"
    kept = results / f"{name}.json"
    if kept.exists():
        facts: dict[str, float] = json.loads(kept.read_text())
        return facts
    pool = KINDS[arm.partition("+")[2]][2] if "+" in arm else "mean"
    config, output, started = _config(asked, data, pool), str(asked.folder / data / "students" / name), time.monotonic()
    value = config.model_dump(mode="json", by_alias=True)
    value["student"]["losses"] = losses_of(arm, weight, DATA[data].soft)
    head = head_of(labels[pool].store)
    job = TrainingJob(
        config=parse_config(value),
        labels=labels[pool],
        seed=seed,
        output=output,
        resume=True,
        arms=("baseline_hard_labels",) if arm == "hard" else ("student",),
        teacher_rows_url=fitted_rows_url(head) if head else None,
    )
    (ref,) = run_arms(job, SilentReporter())
    results.mkdir(exist_ok=True)
    pq.write_table(answers_of(config, labels[pool], load_model(ref.url, task=config.task)), results / f"{name}.parquet")
    facts = {"validation": _validation(output, ref.arm), "seconds": time.monotonic() - started}
    kept.write_text(json.dumps(facts))
    files.delete(output)
    say(f"{data} {name}: validation NLL {facts['validation']:.4f}, {facts['seconds']:.0f} s")
    return facts


def _validation(output: str, arm: str) -> float:
    """The last validation NLL of its curve, which a student has that an earlier command trained, too."""
    curve = read_curve(curve_url(output, arm))
    return [values["validation_nll"] for _, values in sorted(curve.items()) if "validation_nll" in values][-1]


def losses_of(arm: str, weight: float, soft: Mapping[str, Any]) -> dict[str, Any]:
    """The losses of an arm. Steps are counted by them: true labels alone are trained on as a baseline of ``soft``, for
    as many steps as all others."""
    first, _, kind = arm.partition("+")
    found: dict[str, Any] = {"hard": {}} if first == "hard" and kind else dict(soft)
    if kind:
        loss, settings, _ = KINDS[kind]
        found[loss] = {"weight": weight, **settings}
    return found


def tested_rows(config: Campaign, labels: LabelSetRef) -> pa.Table:
    column = TASKS[config.task].inputs.column
    return open_snapshot(labels.snapshot).read("test", columns=["row_id", column, "count", "label"])


def answers_of(config: Campaign, labels: LabelSetRef, model: Model) -> pa.Table:
    task, classes = TASKS[config.task], open_snapshot(labels.snapshot).classes
    panel = Panel(task=task, models={"model": model}, classes=classes, batch=64, bins=HOW.bins)
    return predict_rows(panel, tested_rows(config, labels), columns=log_probabilities)["model"]


def _tell(asked: Asked, data: str, labels: Mapping[str, LabelSetRef], weights: Mapping[str, float]) -> None:
    config, ref = _config(asked, data), labels["mean"]
    teacher = answers_of(config, ref, load_model(config.labels.teacher, task=config.task, head_url=head_of(ref.store)))
    rows = tested_rows(config, ref)

    def joined(arm: str, seed: int) -> pa.Table:
        answers = pq.read_table(asked.folder / data / "results" / f"{arm}@{weights[arm]:g}-{seed}.parquet")
        return join_predictions(rows, answers, teacher=teacher)

    accuracy = measure(join_predictions(rows, teacher), HOW)["accuracy"].value
    say(f"\n{data}: {rows.num_rows} test rows, teacher's accuracy {accuracy:.3f}; {len(asked.seeds)} seeds\n")
    say(f"| losses | weight | {' | '.join(METRICS.values())} | accuracy less that without | KL less that without |")
    say("|" + "---|" * (len(METRICS) + 4))
    for arm in asked.arms:
        tables, base = [joined(arm, seed) for seed in asked.seeds], arm.partition("+")[0]
        measured = [measure(table, HOW) for table in tables]
        cells = [cell([one[metric] for one in measured]) for metric in METRICS]
        less = ["–", "–"]
        if base != arm and base in asked.arms:
            pairs = [compare(table, joined(base, seed), HOW) for table, seed in zip(tables, asked.seeds, strict=True)]
            less = [cell([one[metric] for one in pairs], sign="+") for metric in ("accuracy", "kl_from_teacher")]
        say(
            f"| {arm.replace('+', ' + ')} | {f'{weights[arm]:g}' if base != arm else '–'} | {' | '.join(cells)} "
            f"| {' | '.join(less)} |"
        )


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def cell(found: Sequence[Estimate], sign: str = "") -> str:
    """Mean over seeds, interval over rows, half the range of the seeds."""
    mean = found[0].with_changes(
        **{name: math.fsum(getattr(one, name) for one in found) / len(found) for name in ("value", "low", "high")}
    )
    values = [one.value for one in found]
    spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(found) > 1 else ""
    return f"{mean.value:{sign}.3f} ({mean.low:{sign}.3f}–{mean.high:{sign}.3f}){spread}"


if __name__ == "__main__":
    main()
