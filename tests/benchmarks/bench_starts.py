"""What a student keeps of its teacher: sizes, accuracy and speed by vocabulary, layers and width.

    python -m tests.benchmarks.bench_starts FOLDER [--students NAME…] [--seeds N…] [--epochs N]

20 Newsgroups with MiniLM as teacher, as `jobs/configs/newsgroups.yaml` has them; each student differs from that of the
first line in what it keeps. All is done in this process, without Ray: labels are taken unit by unit, then
`students.run` trains one student after the other by plain torch in two threads. FOLDER keeps data, labels and results:
what is there is not made again. A student is timed on texts of the test split, in batches of 32.

A number is the mean over the seeds; behind ± is half their range. An interval is of the test rows, of the first seed.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import Campaign, load_config, parse_config
from ray_distill.evaluation.predict.rows import join_predictions
from ray_distill.examples import newsgroups
from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import Model
from ray_distill.models.heads.fit_head import fitted_rows_url
from ray_distill.models.io.load import load_model
from ray_distill.runtime.core.session import absolute
from ray_distill.runtime.stages.label import head_of
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.students.run import TrainingJob, run_arms
from ray_distill.students.telemetry.reporter import SilentReporter
from ray_distill.tasks.answers.classes.evaluation.measures import measure
from ray_distill.tasks.catalogue import TASKS
from tests.golden.hidden_table import CONFIGS, HOW, answers_of, label_here

#: By name, what differs from the student of the golden run.
STUDENTS: Mapping[str, Mapping[str, Any]] = {
    "1 of 6 layers, all tokens": {},
    "vocabulary 0.999": {"vocabulary": {"keep": 0.999}},
    "vocabulary 0.99": {"vocabulary": {"keep": 0.99}},
    "2 of 6 layers, evenly": {"keep": 2},
    "2 of 6 layers, importance": {"keep": 2, "layers": "importance"},
    "half width, 6 layers": {"from": "teacher_width", "keep": None, "width": 0.5},
    "half width, 2 layers": {"from": "teacher_width", "keep": 2, "width": 0.5},
}
ROWS, BATCH = 256, 32


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=tuple(STUDENTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1))
    parser.add_argument("--epochs", type=float, default=5.0)
    asked = parser.parse_args(argv)
    torch.set_num_threads(2)
    folder = asked.folder.resolve()
    config = _config(folder, asked.epochs)
    labels = _labels(folder, config)
    _say("| student | kept | parameters | MB | rows a second | accuracy | KL from teacher, nats |")
    _say("|---|---|---|---|---|---|---|")
    for name in asked.students:
        _tell(name, [_train(folder, config, labels, name=name, seed=seed) for seed in asked.seeds])


def _config(folder: Path, epochs: float) -> Campaign:
    settings = (
        f"snapshot.source={folder / 'traffic.parquet'}",
        f"labels.teacher.model={folder / 'minilm'}",
        f"output={folder / 'runs'}",
        "labels.signal.estimator=topk",
        "labels.signal.k=8",
        "labels.hidden.layers=[-1]",
        "student.model.keep=1",
        "student.model.max_length=64",
        "student.losses.soft.weight=1.0",
        "student.losses.hard.weight=0.5",
        "student.losses.hidden={weight: 0.1, layers: last, kind: cosine}",
        f"student.training.epochs={epochs:g}",
        "student.training.global_batch=32",
        "student.training.learning_rate=0.001",
        "student.training.engine=torch",
        "student.training.evaluate_every=100000",
        "student.training.checkpoint_every=100000",
        "tracking.enabled=false",
    )
    return absolute(load_config(CONFIGS / "newsgroups.yaml", settings))


def _labels(folder: Path, config: Campaign) -> LabelSetRef:
    if not (folder / "traffic.parquet").exists():
        newsgroups.prepare(folder)
    kept = folder / "labels.json"
    if not kept.exists():
        kept.write_text(label_here(config, None).to_json())
    return LabelSetRef.from_json(kept.read_text())


def _train(folder: Path, config: Campaign, labels: LabelSetRef, *, name: str, seed: int) -> dict[str, Any]:
    """Train one student and measure it; its facts are kept."""
    place = folder / f"{name.replace(' ', '-').replace(',', '')}-{config.student.training.epochs:g}-{seed}"
    if (kept := place / "facts.json").exists():
        facts: dict[str, Any] = json.loads(kept.read_text())
        return facts
    value, head = config.model_dump(mode="json", by_alias=True), head_of(labels.store)
    value["student"]["model"] |= STUDENTS[name]
    job = TrainingJob(
        config=parse_config(value),
        labels=labels,
        seed=seed,
        output=str(place),
        resume=True,
        arms=("student",),
        teacher_rows_url=fitted_rows_url(head) if head else None,
    )
    (ref,) = run_arms(job, SilentReporter())
    model = load_model(ref.url, task=config.task)
    facts = {**_measured(folder, config, labels, model), **_size(model, Path(ref.url)), "speed": _speed(labels, model)}
    kept.write_text(json.dumps(facts))
    return facts


def _measured(folder: Path, config: Campaign, labels: LabelSetRef, model: Model) -> dict[str, Any]:
    snapshot, column = open_snapshot(labels.snapshot), TASKS[config.task].inputs.column
    rows = snapshot.read("test", columns=["row_id", column, "count", "label"])
    known = _teacher_answers(folder, config, labels)
    found = measure(join_predictions(rows, answers_of(config, labels, model), teacher=known), HOW)
    accuracy = found["accuracy"]
    return {
        "accuracy": accuracy.value,
        "interval": [accuracy.low, accuracy.high],
        "kl": found["kl_from_teacher"].value,
        "teacher": measure(join_predictions(rows, known), HOW)["accuracy"].value,
    }


def _teacher_answers(folder: Path, config: Campaign, labels: LabelSetRef) -> pa.Table:
    kept = folder / "teacher.parquet"
    if not kept.exists():
        teacher = load_model(config.labels.teacher, task=config.task, head_url=head_of(labels.store))
        pq.write_table(answers_of(config, labels, teacher), kept)
    return pq.read_table(kept)


def _size(model: Model, folder: Path) -> dict[str, Any]:
    saved = json.loads((folder / "ray_distill.json").read_text())["describe"]
    kept = saved.get("vocabulary", {}).get("tokens", len(model.processor.tokenizer))  # type: ignore[attr-defined]
    layers = ", ".join(str(layer) for layer in saved["copied_layers"].values())
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    parameters = model.describe["parameters"]
    return {"kept": f"layers {layers}; {kept:,} tokens", "parameters": parameters, "megabytes": size / 1e6}


def _speed(labels: LabelSetRef, model: Model) -> float:
    """Rows a second, with tokenisation: the best of three."""
    inputs = TASKS[model.task].inputs
    rows = open_snapshot(labels.snapshot).read("test", columns=["row_id", inputs.column]).slice(0, ROWS)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for at in range(0, rows.num_rows, BATCH):
            encoded = inputs.encode(rows.slice(at, BATCH), model.processor)
            with torch.inference_mode():
                forward(model.module, inputs.collate(encoded, torch.arange(encoded.rows).numpy()))
        seconds.append(time.perf_counter() - start)
    return float(rows.num_rows / min(seconds))


def _tell(name: str, found: Sequence[Mapping[str, Any]]) -> None:
    low, high = found[0]["interval"]
    _say(
        f"| {name} | {found[0]['kept']} | {found[0]['parameters']:,} | {found[0]['megabytes']:.1f} "
        f"| {statistics.mean(one['speed'] for one in found):.0f} "
        f"| {_cell([one['accuracy'] for one in found])} ({low:.3f}–{high:.3f}; teacher {found[0]['teacher']:.3f}) "
        f"| {_cell([one['kl'] for one in found])} |"
    )


def _cell(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
