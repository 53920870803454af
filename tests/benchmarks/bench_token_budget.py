"""What forward passes by tokens are worth: examples a second against passes of as many rows as always fit.

    python -m tests.benchmarks.bench_token_budget [--width N] [--layers N] [--steps N] [--rounds N] [--tokens N]

The same student (a BERT of random weights), rows, losses and global batch, in one process of two threads, in turns,
through `students.loop.take_step`. Texts have lengths as documents have them: log-normal, the longest cut off. Both ways
are held to the same memory: no pass has more tokens, padding included, than asked for; the baseline's `micro_batch` is
as many rows as may all be of the longest. The defaults take some minutes; `--width 64 --layers 2 --steps 2 --rounds 1`
shows that it runs.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ray_distill.config import LossConfig, TrainingConfig
from ray_distill.losses import catalogue
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.engines.build import build_engine
from ray_distill.students.engines.engine import Engine
from ray_distill.students.loop.train_loop import take_step
from ray_distill.students.loop.training_run import TrainingRun, micros_of
from ray_distill.students.modules.student_module import StudentModule, make_projections
from ray_distill.students.objective.weighted_losses import build_terms
from ray_distill.students.process_group import current_ranks
from ray_distill.tasks.answers.classes import learn as class_learn
from ray_distill.tasks.answers.classes.learn import ClassFormat
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.models import write_tiny_text_model
from tests.labs.training import CLASSES, lab_signal

ROWS, LONGEST, GLOBAL_BATCH = 1024, 128, 128


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="of each way, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16 * LONGEST, help="of a pass, padding included")
    asked = parser.parse_args(argv)
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_text_model(
            Path(folder) / "model",
            CLASSES,
            seed=5,
            hidden_size=asked.width,
            num_hidden_layers=asked.layers,
            intermediate_size=4 * asked.width,
            num_attention_heads=max(1, asked.width // 64),
            max_position_embeddings=LONGEST,
        )
        ways = {
            "rows": {"micro_batch": asked.tokens // LONGEST},
            "tokens": {"micro_tokens": asked.tokens, "micro_batch": GLOBAL_BATCH},
        }
        built = {name: _build(way, folder) for name, way in ways.items()}
        rates = _in_turns(built, asked.steps, asked.rounds)
    for name, (trial, _) in built.items():
        passes, real, whole = _padding(trial, asked.steps)
        sys.stdout.write(
            f"by {name}: {rates[name]:.1f} examples a second, {passes:.1f} passes a step, "
            f"{1 - real / whole:.0%} of the tokens padding\n"
        )
    sys.stdout.write(
        f"by tokens: {rates['tokens'] / rates['rows']:.2f} times the examples a second of {ways['rows']}, "
        f"at {asked.tokens} tokens a pass\n"
    )


def _in_turns(built: dict[str, tuple[TrainingRun, Engine]], steps: int, rounds: int) -> dict[str, float]:
    """Each way's median rate; the first steps, which warm up, are not timed."""
    found: dict[str, list[float]] = {name: [] for name in built}
    for number in range(rounds + 1):
        for name, (trial, engine) in built.items():
            made = [take_step(trial, engine, current_ranks(), step)[0] for step in range(steps if number else 1)]
            if number:
                found[name].append(len(made) * GLOBAL_BATCH / sum(values["seconds_step"] for values in made))
    return {name: statistics.median(taken) for name, taken in found.items()}


def _padding(trial: TrainingRun, steps: int) -> tuple[float, int, int]:
    """Passes a step, real tokens, and all tokens of some steps."""
    lengths = trial.data.lengths
    assert lengths is not None
    micros = [lengths[micro.rows, 0] for step in range(steps) for micro in micros_of(trial, current_ranks(), step)]
    return (
        len(micros) / steps,
        int(sum(own.sum() for own in micros)),
        int(sum(len(own) * own.max() for own in micros)),
    )


def _data(model: Model) -> PositionExamples:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3.3, 0.8, ROWS), 2, LONGEST - 2).astype(int)
    texts = ["".join(rng.choice(list("abcdefgh"), length)) for length in lengths]
    ids = pa.array([rng.bytes(16) for _ in range(ROWS)], pa.binary(16))
    table = pa.table({"row_id": ids, "text": texts, "label": pa.array(rng.integers(0, 4, ROWS), pa.int32())})
    return build_examples(
        table,
        answers=ClassFormat(
            task=TASKS["text_classification"],
            student_classes=model.classes,
            snapshot_classes=CLASSES,
            store_classes=CLASSES,
        ),
        processor=model.processor,
        labels=(ids, lab_signal(ROWS, 0)),
    )


def _build(way: dict[str, Any], folder: str) -> tuple[TrainingRun, Engine]:
    training = TrainingConfig.model_validate({"global_batch": GLOBAL_BATCH, "engine": "torch", **way})
    model, losses = load_model(f"{folder}/model", task="text_classification"), {"soft": LossConfig(temperature=2.0)}
    data = _data(model)
    trial = TrainingRun(
        name="bench",
        url="",
        curve="",
        data=data,
        rows=np.arange(data.rows),
        steps=1000,
        seed=3,
        training=training,
        rate=1e-4,
        terms=build_terms(losses, kinds=catalogue.LOSSES, steps=1000, temperatures=(1.0, 2.0), layers={}),
        judge=class_learn.validator(data),
        plan={},
    )
    bundle = StudentModule(model.module, make_projections(model, layers={}, widths={}, seed=3), pool="mean")
    engine = build_engine(bundle, training, current_ranks(), passes=GLOBAL_BATCH)
    engine.train(True)
    return trial, engine


if __name__ == "__main__":
    main()
