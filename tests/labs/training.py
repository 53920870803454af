"""A tiny real training problem for the tests of this folder: a BERT of 2 layers, random texts, a random teacher.

Everything is a function of seeds, so that every rank and every process builds the same.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.config import LossConfig, TrainingConfig
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.signal import Signal, Vectors, signal_of
from ray_distill.losses import catalogue
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.data.resampling import Occurrences, occurrences
from ray_distill.students.engines.build import build_engine
from ray_distill.students.engines.engine import Engine, compile_module
from ray_distill.students.loop.train_loop import train_run
from ray_distill.students.loop.training_run import TrainingRun
from ray_distill.students.modules.student_module import StudentModule, make_projections
from ray_distill.students.objective.validate_losses import pairs_of, required_layers, scales_of
from ray_distill.students.objective.weighted_losses import build_terms, group_of
from ray_distill.students.order.micro_batches import Budget
from ray_distill.students.process_group import current_ranks
from ray_distill.students.telemetry.reporter import TrainingStopped
from ray_distill.students.telemetry.step_timer import is_measured
from ray_distill.tasks.answers.classes import learn as class_learn
from ray_distill.tasks.answers.classes.learn import ClassFormat
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.models import write_tiny_text_model

CLASSES = ("red", "green", "blue", "grey")
ROWS = 52
LAYERS = (3, 6)
WIDTH = 12
#: Relative, in float32: summing in another order moves the last bits.
TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Lab:
    """One run: where, with which settings, and what it does on the way. Picklable."""

    folder: str
    training: dict[str, Any] = field(default_factory=dict)
    steps: int = 8
    resume: bool = False
    stop_after: int | None = None
    hidden: bool = False
    losses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Instead of the usual ones."""
    labels: str = "labels-1"
    dropout: float = 0.0
    trial: str = "trial"
    """Folder of its checkpoints."""
    counts: Literal["once", "weighed", "expanded"] = "once"
    """How often each row came: once; several times, by which it is weighed; or as many equal rows."""


class Recorder:
    """A reporter that keeps what it is told and asks to stop after a step."""

    def __init__(self, stop_after: int | None = None, save_after: int | None = None) -> None:
        self.curve: dict[int, dict[str, float]] = {}
        self.by_arm: dict[str, dict[int, dict[str, float]]] = {}
        self.saved: list[Mapping[str, Any]] = []
        self._stop_after, self._save_after = stop_after, save_after

    def metrics(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        self.curve[step] = dict(values)
        self.by_arm.setdefault(arm, {})[step] = dict(values)

    def checkpoint(self, value: Mapping[str, Any]) -> None:
        self.saved.append(value)

    def should_stop(self) -> bool:
        done = sum(len(curve) for curve in self.by_arm.values())
        return self._stop_after is not None and done >= self._stop_after - 1

    def should_save(self) -> bool:
        return self._save_after is not None and max(self.curve) == self._save_after


def write_model(folder: Path) -> str:
    """The student's checkpoint: to be written once, before any rank starts."""
    return str(write_tiny_text_model(folder / "model", CLASSES, seed=5, initializer_range=0.1))


def table_of(rows: int, seed: int, labelled: float) -> pa.Table:
    """Snapshot rows with random texts of 1 to 12 characters; some have a true label."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("abcdefgh "), rng.integers(1, 12))) + "z" for _ in range(rows)]
    labels = [int(rng.integers(4)) if rng.random() < labelled else None for _ in range(rows)]
    ids = pa.array([rng.bytes(16) for _ in range(rows)], pa.binary(16))
    return pa.table({"row_id": ids, "text": texts, "label": pa.array(labels, pa.int32())})


def lab_signal(rows: int, seed: int) -> Signal:
    """Dense distributions at T = 1 and 2, and pooled hidden states."""
    rng = np.random.default_rng(seed)
    logp = torch.from_numpy(rng.normal(size=(rows, 4)) * 2).log_softmax(-1).numpy().astype(np.float32)
    steps = np.arange(rows + 1, dtype=np.int64)
    distributions = Distributions(
        classes=4,
        temperatures=(1.0, 2.0),
        row_offsets=steps,
        position=np.zeros(rows, np.int32),
        entry_offsets=steps * 4,
        ids=np.tile(np.arange(4, dtype=np.int32), rows),
        logp=logp.reshape(-1),
        log_tail=np.full((rows, 2), -np.inf, np.float32),
        entropy=-(np.exp(logp) * logp).sum(-1),
    )
    hidden = {
        layer: Vectors(offsets=steps, values=rng.normal(size=(rows, WIDTH)).astype(np.float32)) for layer in LAYERS
    }
    return signal_of(distributions=distributions, hidden=hidden)


def data_of(model: Model, rows: int, seed: int, labelled: float) -> PositionExamples:
    """A training set whose first seven rows the teacher may not teach."""
    table = table_of(rows, seed, labelled)
    ids = table["row_id"].combine_chunks()
    return build_examples(
        table,
        answers=ClassFormat(
            task=TASKS["text_classification"],
            student_classes=model.classes,
            snapshot_classes=CLASSES,
            store_classes=CLASSES,
        ),
        processor=model.processor,
        labels=(ids, lab_signal(rows, seed)),
        excluded=ids[:7],
    )


def counts_of(data: PositionExamples) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How often each row came: most once to three times, every ninth 40 times."""
    numbers = np.arange(data.rows)
    return np.where(numbers % 9 == 4, 40, 1 + numbers % 3)


def build(lab: Lab) -> tuple[TrainingRun, Engine]:
    """The trial and its engine on this rank."""
    torch.set_num_threads(1)
    ranks = current_ranks()
    training = TrainingConfig.model_validate(
        {
            "global_batch": 12,
            "micro_batch": 3,
            "learning_rate": 5e-3,
            "evaluate_every": 4,
            "checkpoint_every": 2,
            "engine": "torch",
            **lab.training,
        }
    )
    model = load_model(lab.folder + "/model", task="text_classification")
    for module in model.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = lab.dropout
    losses = {"soft": LossConfig(weight=0.7, temperature=2.0), "hard": LossConfig(weight=0.3)}
    if lab.hidden:
        losses["hidden"] = LossConfig(weight=0.5)
    if lab.losses:
        losses = {name: LossConfig.model_validate(values) for name, values in lab.losses.items()}
    data, validation = data_of(model, ROWS, 1, 0.5), data_of(model, 60, 2, 1.0)
    epoch = Occurrences(rows=np.arange(data.rows), weights=None)
    if lab.counts == "expanded":
        epoch = Occurrences(rows=np.repeat(epoch.rows, counts_of(data)), weights=None)
    if lab.counts == "weighed":
        data, validation = (replace(some, count=counts_of(some)) for some in (data, validation))
        epoch = occurrences(epoch.rows, data, None, seed=3)
    plan = {"labels": lab.labels}
    terms = build_terms(
        losses,
        kinds=catalogue.LOSSES,
        steps=lab.steps,
        temperatures=(1.0, 2.0),
        layers=pairs_of(losses, LAYERS, model, catalogue.LOSSES),
        scales=scales_of(data),
    )
    projected, plain = required_layers(terms)
    trial = TrainingRun(
        name="student",
        url=f"{lab.folder}/{lab.trial}",
        curve=f"{lab.folder}/{lab.trial}/curve",
        data=data,
        rows=epoch.rows,
        weights=epoch.weights,
        steps=lab.steps,
        seed=3,
        terms=terms,
        judge=class_learn.validator(validation),
        training=training,
        rate=training.learning_rate[0],
        plan=plan,
    )
    bundle = StudentModule(
        model.module,
        make_projections(model, layers=projected, widths=dict.fromkeys(LAYERS, WIDTH), seed=3),
        plain=plain,
        pool="mean",
    )
    if training.compile is not None:
        compile_module(bundle.computing, training.compile)
    passes = Budget.of(training, group_of(terms)).passes(training.global_batch, ranks.world)
    return trial, build_engine(bundle, training, ranks, passes=passes)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a run left: metrics by step, the best result's, and its weights (first rank only)."""

    curve: dict[int, dict[str, float]]
    best: dict[str, Any]
    weights: dict[str, torch.Tensor]
    saved: list[Mapping[str, Any]]


def run(lab: Lab) -> Ran:
    """Train on this rank, to the end."""
    trial, engine = build(lab)
    recorder = Recorder()
    best = train_run(trial, engine, current_ranks(), recorder, resume=lab.resume)
    engine.close()
    return Ran(curve=recorder.curve, best=best.record.to_dict(), weights=best.weights, saved=recorder.saved)


def run_all(labs: list[Lab]) -> list[Ran]:
    """Train several runs one after the other in one process."""
    return [run(lab) for lab in labs]


class Watched:
    """Examples, and an engine, that note the rows which are trained on: some are made ahead and never are."""

    def __init__(self, data: PositionExamples, engine: Engine) -> None:
        self.seen: list[int] = []
        self._data, self._forward = data, engine.forward
        self._made: list[tuple[Any, list[int]]] = []
        engine.forward = self.forward  # type: ignore[method-assign]

    def batch(self, rows: Any, weight_B: Any = None) -> Any:
        made = self._data.batch(rows, weight_B)
        self._made.append((made[0], rows[weight_B > 0].tolist()))
        return made

    def forward(self, inputs: Any, request: Any = None) -> Any:
        self.seen += [row for made, rows in self._made if made is inputs for row in rows]
        return self._forward(inputs, request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


def run_part(lab: Lab) -> tuple[dict[int, dict[str, float]], list[int]]:
    """Train until stopped, or to the end; returns the curve so far and the rows this rank has seen."""
    trial, engine = build(lab)
    recorder, watched = Recorder(lab.stop_after), Watched(trial.data, engine)  # type: ignore[arg-type]
    with contextlib.suppress(TrainingStopped):
        train_run(replace(trial, data=watched), engine, current_ranks(), recorder, resume=lab.resume)
    engine.close()
    return recorder.curve, watched.seen


def run_until_stopped(lab: Lab) -> dict[int, dict[str, float]]:
    """Train until the reporter asks to stop; returns the curve so far."""
    curve, _ = run_part(lab)
    assert len(curve) == lab.stop_after, "the run was not stopped"
    return curve


def run_whole_then_cut(lab: Lab) -> Ran:
    """Train to the end in a folder of its own, then again until stopped, in one process; returns the whole run."""
    whole = run(replace(lab, trial=f"whole-{lab.trial}", stop_after=None))
    run_until_stopped(lab)
    return whole


def run_whole_then_cut_all(labs: list[Lab]) -> list[Ran]:
    """`run_whole_then_cut` of several runs, whose trials have names of their own."""
    return [run_whole_then_cut(lab) for lab in labs]


def run_parts(labs: list[Lab]) -> list[dict[int, dict[str, float]]]:
    """`run_part` of several runs in one process, one after the other; their curves."""
    return [run_part(lab)[0] for lab in labs]


def loss_curve(ran: Ran) -> list[float]:
    """Total loss of every step."""
    return [ran.curve[step]["loss"] for step in sorted(ran.curve)]


def assert_same_curve(found: Ran, expected: Ran) -> None:
    """Every metric but those of time and memory, at every step, within `TOLERANCE`."""
    assert sorted(found.curve) == sorted(expected.curve)
    for step, values in expected.curve.items():
        assert learnt(found.curve[step]) == pytest.approx(learnt(values), rel=TOLERANCE, abs=1e-6), step


def learnt(values: Mapping[str, float]) -> dict[str, float]:
    """A step's metrics that the training decides, not the machine."""
    return {name: value for name, value in values.items() if not is_measured(name)}
