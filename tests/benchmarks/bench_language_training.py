"""Training a language model from stored labels: against cross-entropy alone, and against a teacher in every step.

    python -m tests.benchmarks.bench_language_training [FOLDER] [--steps N] [--student layers|narrow]

Three loops train the same student on the same documents, with the same optimiser, and take their steps in turns, so
that what else the machine does falls on all of them:

    store      `students.loop` with the soft loss; labels are read from a label store on disk, which counts
    memory     the same loop with cross-entropy on the tokens, which are in memory
    online     no labels: each step runs the teacher, and takes the KL of whole logits, as is done without a store

It prints tokens a second of the first over the second, and steps a second of the first over the third. Without FOLDER
the models are tiny, which shows that it runs; a folder of `ray_distill.examples.docstrings` has the real ones. The
student is four of the teacher's layers, or four narrow ones with a slice of its embeddings.
"""

import argparse
import copy
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import Campaign, LossConfig, StudentModel
from ray_distill.examples.docstrings import docstrings
from ray_distill.labels.store.reader import open_label_set
from ray_distill.losses import catalogue
from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.models.students.build import build_student
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.engines.build import build_engine
from ray_distill.students.loop.train_loop import take_step
from ray_distill.students.loop.training_run import TrainingRun
from ray_distill.students.modules.student_module import PLACES, StudentModule
from ray_distill.students.objective.weighted_losses import build_terms
from ray_distill.students.order.cursor import global_batch_at
from ray_distill.students.process_group import current_ranks
from ray_distill.tasks.answers.tokens import learn as token_learn
from ray_distill.tasks.answers.tokens.learn import TokenFormat
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.models import write_tiny_causal_model
from tests.labs.language_store import config_of, labelled, write_texts

TOKENS, GLOBAL_BATCH, TASK = 128, 8, "causal_lm"
STUDENTS: dict[str, dict[str, Any]] = {
    "layers": {"from": "teacher_layers", "keep": 4},
    "narrow": {
        "from": "config",
        "embeddings": "slice",
        "overrides": {
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 64,
        },
    },
    "tiny": {"from": "teacher_layers", "keep": 1},
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all loops share."""

    config: Campaign
    labels: LabelSetRef
    student: Model
    steps: int


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One way to train."""

    step: Callable[[int], Any]
    read: float
    """Seconds that reading takes a step; the reading is done before the first, and counts."""
    tokens: int
    """Answered in all steps."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=16, help="of each loop")
    parser.add_argument("--student", choices=("layers", "narrow"), default="layers")
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        bench = _prepare(Path(name), asked.folder, "tiny" if asked.folder is None else asked.student, asked.steps)
        loops = {"store": _store(bench), "memory": _memory(bench), "online": _online(bench)}
        for loop in loops.values():
            loop.step(0)  # warms up
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        turns = itertools.cycle(itertools.permutations(loops))
        for step, names in zip(range(1, asked.steps + 1), turns, strict=False):
            for loop in names:
                started = time.perf_counter()
                loops[loop].step(step)
                seconds[loop].append(time.perf_counter() - started)
    a_step = {loop: statistics.median(found) + loops[loop].read for loop, found in seconds.items()}
    store, memory, online = (a_step[loop] for loop in loops)
    tokens = loops["store"].tokens / asked.steps
    sys.stdout.write(
        f"training from the store: {memory / store:.3f} of cross-entropy in memory ({tokens / store:.0f} against "
        f"{tokens / memory:.0f} tokens/s; reading is {loops['store'].read / store:.1%}), {online / store:.2f} times "
        f"the steps of the online way ({1 / store:.2f} against {1 / online:.2f} a second); student of "
        f"{sum(p.numel() for p in bench.student.module.parameters()):,} parameters\n"
    )


def _prepare(scratch: Path, folder: Path | None, student: str, steps: int) -> Bench:
    torch.set_num_threads(2)
    teacher = write_tiny_causal_model(scratch / "teacher", seed=1) if folder is None else folder.resolve() / "teacher"
    documents = GLOBAL_BATCH * steps * 2
    source = write_texts(scratch / "texts.jsonl", docstrings()[:documents])
    config = config_of(
        scratch,
        source,
        teacher={"model": str(teacher), "max_length": TOKENS},
        signal={"estimator": "topk", "k": 50, "encoding": "compact"},
        training={"global_batch": GLOBAL_BATCH, "micro_batch": GLOBAL_BATCH},
    )
    model = build_student(
        StudentModel.model_validate(STUDENTS[student]), task=TASK, classes=(), teacher=config.labels.teacher, seed=0
    )
    return Bench(config=config, labels=labelled(config), student=model, steps=steps)


def _store(bench: Bench) -> Loop:
    """Its steps, and what reading the labels takes a step."""
    started = time.perf_counter()
    data = _data(bench, open_label_set(bench.labels).read())
    read = (time.perf_counter() - started) * GLOBAL_BATCH / data.rows
    return _training(bench, data, {"soft": LossConfig()}, read)


def _memory(bench: Bench) -> Loop:
    return _training(bench, _data(bench, None), {"hard": LossConfig()})


def _data(bench: Bench, labels: Any) -> PositionExamples:
    task = TASKS[TASK]
    table = open_snapshot(bench.labels.snapshot).read("train", ["row_id", task.inputs.column])
    return build_examples(
        table,
        answers=TokenFormat(task=task, vocabulary=bench.student.vocabulary),
        processor=bench.student.processor,
        labels=labels,
    )


def _training(bench: Bench, data: PositionExamples, losses: dict[str, LossConfig], read: float = 0.0) -> Loop:
    """`students.loop`."""
    ranks, training = current_ranks(), bench.config.student.training
    engine = build_engine(StudentModule(_copy(bench.student), {}, fuse=True), training, ranks, passes=1)
    trial = TrainingRun(
        name="bench",
        url="",
        curve="",
        data=data,
        rows=np.arange(data.rows),
        steps=bench.steps + 1,
        seed=0,
        terms=build_terms(losses, kinds=catalogue.LOSSES, steps=bench.steps, temperatures=(1.0,), layers={}),
        judge=token_learn.validator(data),
        training=training,
        rate=1e-4,
        plan={},
    )
    engine.train(True)
    return Loop(step=partial(take_step, trial, engine, ranks), read=read, tokens=_tokens(data, bench.steps))


def _online(bench: Bench) -> Loop:
    """The teacher in every step, and the KL of whole logits at the same tokens."""
    data, teacher = _data(bench, None), load_model(bench.config.labels.teacher, task=TASK)
    module = _copy(bench.student).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)

    def take(step: int) -> None:
        inputs, _ = data.batch(_rows(data, step))
        places = inputs.pop(PLACES)  # type: ignore[attr-defined]
        with torch.no_grad():
            theirs = forward(teacher.module, inputs).logits_BV.flatten(0, 1)[places].log_softmax(-1)
        ours = forward(module, inputs).logits_BV.flatten(0, 1)[places].log_softmax(-1)
        functional.kl_div(ours, theirs, reduction="batchmean", log_target=True).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Loop(step=take, read=0.0, tokens=_tokens(data, bench.steps))


def _copy(model: Model) -> Any:
    return copy.deepcopy(model.module)


def _rows(data: PositionExamples, step: int) -> Any:
    return global_batch_at(0, step, data.rows, GLOBAL_BATCH)


def _tokens(data: PositionExamples, steps: int) -> int:
    lengths = np.diff(data.answered.offsets)
    return int(sum(lengths[_rows(data, step)].sum() for step in range(1, steps + 1)))


if __name__ == "__main__":
    main()
