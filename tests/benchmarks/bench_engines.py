"""What an engine and a second worker are worth: the time of a training step, by engine and by number of ranks.

    python -m tests.benchmarks.bench_engines [--width N] [--layers N] [--steps N] [--rounds N]

The same student (a BERT of random weights), rows, losses and global batch throughout, one thread a process, through
`students.loop.take_step`; the medians of some rounds are compared:

    engines    DeepSpeed at ZeRO 0 against plain torch, in one process and in turns
    workers    two gloo ranks against one, with plain torch and at ZeRO 1

The first prints a step's time over plain torch's, the second the steps of two over those of one, and how much of a step
of two is communication. The defaults take some minutes; `--width 64 --layers 2 --steps 3 --rounds 1` shows that it
runs.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ray_distill.config import LossConfig, TrainingConfig
from ray_distill.losses import catalogue
from ray_distill.models.io.load import load_model
from ray_distill.students.engines.build import build_engine
from ray_distill.students.engines.engine import Engine
from ray_distill.students.loop.train_loop import take_step
from ray_distill.students.loop.training_run import TrainingRun
from ray_distill.students.modules.student_module import StudentModule, make_projections
from ray_distill.students.objective.weighted_losses import build_terms
from ray_distill.students.process_group import current_ranks
from ray_distill.tasks.answers.classes import learn as class_learn
from ray_distill.testing.gloo import run_gloo
from ray_distill.testing.models import write_tiny_text_model
from tests.labs.training import CLASSES, ROWS, data_of

#: All rows in each step, so that all steps are alike; two passes of one worker, or one of each of two.
SETTINGS: dict[str, Any] = {"global_batch": ROWS, "micro_batch": ROWS // 2, "learning_rate": 1e-4}
TORCH, ZERO_0, ZERO_1 = ({"engine": "torch"}, *({"engine": "deepspeed", "zero_stage": stage} for stage in (0, 1)))


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Medians of one way to train."""

    step: float
    """Seconds."""
    communication: float
    """Its share of a step, on the first rank."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="of each way, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_text_model(
            Path(folder) / "model",
            CLASSES,
            seed=5,
            hidden_size=asked.width,
            num_hidden_layers=asked.layers,
            intermediate_size=4 * asked.width,
            num_attention_heads=max(1, asked.width // 64),
        )
        size = sum(p.numel() for p in load_model(f"{folder}/model", task="text_classification").module.parameters())
        arguments = (folder, asked.steps, asked.rounds)
        alone = run_gloo(_in_turns, 1, (TORCH, ZERO_0, ZERO_1), *arguments, timeout=3600)[0]
        paired = run_gloo(_in_turns, 2, (TORCH, ZERO_1), *arguments, timeout=3600)[0]
    plain, zero, _ = alone
    sys.stdout.write(
        f"student of {size:,} parameters, {ROWS} rows a step\n"
        f"DeepSpeed at ZeRO 0: {zero.step / plain.step:.3f} of plain torch's time a step "
        f"({1e3 * zero.step:.1f} against {1e3 * plain.step:.1f} ms)\n"
    )
    for name, one, two in (("plain torch", alone[0], paired[0]), ("ZeRO 1", alone[2], paired[1])):
        sys.stdout.write(
            f"two workers, {name}: {one.step / two.step:.2f} times the steps of one ({1 / two.step:.2f} "
            f"against {1 / one.step:.2f} a second), {two.communication:.0%} of a step communicating\n"
        )


def _in_turns(ways: Sequence[dict[str, Any]], folder: str, steps: int, rounds: int) -> list[Timed]:
    """Each way's medians; all ranks call it. The first steps, which warm up, are not timed."""
    torch.set_num_threads(1)
    ranks = current_ranks()
    built = [_build(way, folder) for way in ways]
    found: list[list[dict[str, float]]] = [[] for _ in ways]
    for number in range(rounds + 1):
        for (trial, engine), taken in zip(built, found, strict=True):
            made = [take_step(trial, engine, ranks, step)[0] for step in range(steps if number else 2)]
            if number:
                taken.append(
                    {
                        name: statistics.median(values[name] for values in made)
                        for name in ("seconds_step", "seconds_communication")
                    }
                )
    for _, engine in built:
        engine.close()
    return [_medians(taken) for taken in found]


def _medians(rounds: list[dict[str, float]]) -> Timed:
    step, communication = (
        statistics.median(values[name] for values in rounds) for name in ("seconds_step", "seconds_communication")
    )
    return Timed(step=step, communication=communication / step)


def _build(way: dict[str, Any], folder: str) -> tuple[TrainingRun, Engine]:
    ranks, training = current_ranks(), TrainingConfig.model_validate({**SETTINGS, **way})
    model, losses = load_model(f"{folder}/model", task="text_classification"), {"soft": LossConfig(temperature=2.0)}
    data = data_of(model, ROWS, 1, 0.5)
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
    engine = build_engine(bundle, training, ranks, passes=2 // ranks.world)
    engine.train(True)
    return trial, engine


if __name__ == "__main__":
    main()
