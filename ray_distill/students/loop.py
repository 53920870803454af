"""One trial: a bundle trained for a fixed number of steps, its best weights on validation kept."""

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ray_distill.config import TrainingConfig
from ray_distill.errors import TrainingError
from ray_distill.losses.base import LossBatch
from ray_distill.storage import files
from ray_distill.students.batches import Examples
from ray_distill.students.checkpoints import check_plan, fetch_checkpoint, find_checkpoint, save_checkpoint
from ray_distill.students.engine import Engine
from ray_distill.students.outcomes import WEIGHTS_FILE, Best, read_weights, weights_bytes
from ray_distill.students.ranks import Ranks
from ray_distill.students.reporter import Reporter, TrainingStopped
from ray_distill.students.sampler import Index, cursor_at, global_batch_at, micro_batches
from ray_distill.students.schedules import rate_factor
from ray_distill.students.terms import Term, ask_head, combine, to_device, weights_of
from ray_distill.students.token_bundle import PLACES
from ray_distill.students.validation import Judge
from ray_distill.tasks.base import Batch


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Everything that decides a trial's result, but for the first weights of the bundle."""

    name: str
    """The arm, and its learning rate where there are several: what metrics are reported under."""
    url: str
    """Folder of its checkpoints."""
    data: Examples
    rows: Index
    """Rows of ``data`` it trains on."""
    terms: tuple[Term, ...]
    judge: Judge
    training: TrainingConfig
    rate: float
    steps: int
    seed: int
    plan: Mapping[str, Any]
    """What a checkpoint must agree with: plain JSON."""


def run_trial(trial: Trial, engine: Engine, ranks: Ranks, reporter: Reporter, *, resume: bool) -> Best:
    """Train to the end, from the newest checkpoint if ``resume`` and there is one.

    Raises:
        TrainingError: a loss is not finite, or the checkpoint is of another run.
        TrainingStopped: a stop was requested; the state is saved.
    """
    step, best, resumed = _restore(trial, engine, ranks) if resume else (0, None, None)
    protect = () if resumed is None else (resumed,)
    engine.train(True)
    while step < trial.steps:
        values, stop = take_step(trial, engine, ranks, step, stop=reporter.should_stop())
        step += 1
        if step % trial.training.evaluate_every == 0 or step == trial.steps:
            best = _judge(trial, engine, ranks, step, best, values)
        reporter.metrics(trial.name, step, values)
        if step == trial.steps:
            break
        if stop or step % trial.training.checkpoint_every == 0:
            url = _save(trial, engine, ranks, step, best, protect)
            reporter.checkpoint({"trial": trial.name, "step": step, "url": url})
        if stop:
            raise TrainingStopped(f"{trial.name}: stopped as requested after step {step} of {trial.steps}; "
                                  f"the state is saved in {trial.url}, resume to go on")
    assert best is not None
    return best


def take_step(
    trial: Trial, engine: Engine, ranks: Ranks, step: int, *, stop: bool = False
) -> tuple[dict[str, float], bool]:
    """One optimiser step; returns its metrics, and whether any rank wants to stop.

    Randomness inside the model is a function of (seed, step, rank), so a resumed run draws what the
    uninterrupted one drew.
    """
    start = time.perf_counter()
    _seed_step(trial.seed, step, ranks.rank)
    batches = _batches_of(trial, ranks, step, engine.device)
    weights = weights_of(trial.terms, [losses for _, losses in batches], ranks, engine.device)
    rate = trial.rate * rate_factor(
        step, steps=trial.steps, warmup=trial.training.warmup, shape=trial.training.schedule)
    parts: list[list[Tensor]] = []
    engine.step([partial(_pass, trial.terms, engine, step, weights, parts, *batch) for batch in batches], rate)
    sums: list[float | Tensor] = [torch.stack(column).sum() for column in zip(*parts, strict=True)]
    *means, stops = ranks.total([*sums, float(stop)], engine.device)
    values = _metrics(trial, step, weights, means)
    count = len(global_batch_at(trial.seed, step, len(trial.rows), trial.training.global_batch))
    seconds = time.perf_counter() - start
    return {**values, "learning_rate": rate, "examples_per_second": count / seconds}, stops > 0


def _pass(
    terms: Sequence[Term], engine: Engine, step: int, weights: Sequence[float], parts: list[list[Tensor]],
    inputs: Batch, batch: LossBatch,
) -> Tensor:
    """Forward one micro-batch; returns its share of the global loss and notes the share of each term."""
    asked = ask_head(terms, batch, step=step, weights=weights) if PLACES in inputs else None
    loss, part = combine(terms, engine.forward(inputs, asked), batch, step=step, weights=weights)
    parts.append(part)
    return loss


def _batches_of(trial: Trial, ranks: Ranks, step: int, device: torch.device) -> list[tuple[Batch, LossBatch]]:
    training = trial.training
    chosen = trial.rows[global_batch_at(trial.seed, step, len(trial.rows), training.global_batch)]
    micros = micro_batches(chosen, rank=ranks.rank, world=ranks.world, micro_batch=training.micro_batch)
    made = [trial.data.batch(micro.rows, micro.real) for micro in micros]
    return [(inputs, to_device(losses, device)) for inputs, losses in made]


def _metrics(trial: Trial, step: int, weights: Sequence[float], means: Sequence[float]) -> dict[str, float]:
    """Global means of the terms the batch carried, and their weighted sum.

    Raises:
        TrainingError: one is not finite.
    """
    found = {
        term.name: mean for term, weight, mean in zip(trial.terms, weights, means, strict=True) if weight > 0}
    for name, mean in found.items():
        if not math.isfinite(mean):
            raise TrainingError(
                f"{trial.name}: the loss term {name!r} is {mean} at step {step + 1} of {trial.steps}; lower the "
                "learning rate, prefer precision bf16 or fp32 to fp16, or look at this step's labels")
    loss = sum(term.weight(step) * found[term.name] for term in trial.terms if term.name in found)
    return {"loss": loss, **{f"loss_{name}": mean for name, mean in found.items()}}


def _judge(
    trial: Trial, engine: Engine, ranks: Ranks, step: int, best: Best | None, values: dict[str, float]
) -> Best:
    """Validate, add the result to ``values``, and keep the weights if they are the best so far."""
    score = trial.judge.score(engine, ranks, batch=trial.training.micro_batch)
    if not math.isfinite(score.value):
        raise TrainingError(f"{trial.name}: the validation loss is {score.value} after step {step} of {trial.steps}; "
                            "lower the learning rate, or prefer precision bf16 or fp32 to fp16")
    values.update(score.metrics, epoch=trial.training.epochs * step / trial.steps)
    if best is not None and best.score.value <= score.value:
        return best
    return Best(score=score, step=step, weights=engine.weights())


def _save(
    trial: Trial, engine: Engine, ranks: Ranks, step: int, best: Best | None, protect: Sequence[str]
) -> str:
    def write(folder: Path) -> None:
        (folder / "engine").mkdir()
        engine.save(folder / "engine")
        if best is not None and ranks.first:
            (folder / WEIGHTS_FILE).write_bytes(weights_bytes(best.weights))

    cursor = cursor_at(step, len(trial.rows), trial.training.global_batch)
    state = {"cursor": cursor.to_dict(), "best": None if best is None else best.to_dict()}
    return save_checkpoint(
        checkpoints_url(trial), ranks, write, step=step, plan=trial.plan, state=state, protect=protect)


def _restore(trial: Trial, engine: Engine, ranks: Ranks) -> tuple[int, Best | None, str | None]:
    """Load the newest checkpoint, if there is one: steps done, best so far, and its URL."""
    found = find_checkpoint(checkpoints_url(trial), ranks)
    if found is None:
        return 0, None, None
    check_plan(found.plan, trial.plan, f"checkpoint {found.url}")
    with TemporaryDirectory(prefix="ray-distill-resume-") as local:
        fetch_checkpoint(found, Path(local))
        engine.load(Path(local) / "engine")
        saved = found.state["best"]
        weights = read_weights((Path(local) / WEIGHTS_FILE).read_bytes()) if saved is not None and ranks.first else {}
    return found.step, None if saved is None else Best.from_dict(saved, weights), found.url


def checkpoints_url(trial: Trial) -> str:
    """Folder of a trial's checkpoints."""
    return files.join(trial.url, "checkpoints")


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every generator a model may draw from."""
    drawn = int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint32)[0])
    torch.manual_seed(drawn)
    random.seed(drawn)
    np.random.seed(drawn)
