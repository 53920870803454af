"""Train one run: the steps of a bundle; keep its best weights on validation."""

import math
import random
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ray_distill.config import TrainingConfig
from ray_distill.errors import Diverged, TrainingError
from ray_distill.losses.base import LossBatch
from ray_distill.storage import files
from ray_distill.students.checkpoints.async_writer import CheckpointWriter
from ray_distill.students.checkpoints.store import check_plan, fetched, find_checkpoint
from ray_distill.students.engines.engine import Engine
from ray_distill.students.loop.best_result import WEIGHTS_FILE, Best, Ended, SavedState, read_weights, weights_bytes
from ray_distill.students.loop.nonfinite_report import not_finite
from ray_distill.students.loop.pace import Progress
from ray_distill.students.loop.training_run import Batches, TrainingRun, batches_of, checkpoints_url, micros_of
from ray_distill.students.loop.validation import Score
from ray_distill.students.objective.weighted_losses import Term, combine, head_request, squares, to_device, weights_of
from ray_distill.students.order.cursor import cursor_at
from ray_distill.students.order.prefetch import Feed
from ray_distill.students.process_group import Ranks
from ray_distill.students.telemetry.curves import CurveWriter
from ray_distill.students.telemetry.reporter import Reporter, TrainingStopped
from ray_distill.students.telemetry.step_timer import StepMeter, peak_memory
from ray_distill.tasks.encoded import Batch

#: The progress of a run before its first step.
FRESH = Progress()
#: Seconds between two checks for a preemption notice; the check is collective.
POLL_SECONDS = 5.0


@dataclass(kw_only=True)
class TrainState:
    """Progress of a run: everything that a checkpoint contains beside the engine's state."""

    step: int = 0
    """Number of completed steps."""
    best: Best | None = None
    last_validation: Score | None = None
    progress: Progress = Progress()
    checkpoint: str | None = None
    """The checkpoint from which the run was resumed."""


def train_run(run: TrainingRun, engine: Engine, ranks: Ranks, reporter: Reporter, *, resume: bool) -> Best:
    """Train to the end, from the newest checkpoint if ``resume`` and there is one.

    Raises:
        TrainingError: a loss is not finite, or the checkpoint was made under another plan.
        TrainingStopped: a stop was requested; the state is saved.
    """
    state = _restore(run, engine, ranks) if resume else TrainState()
    saver = CheckpointWriter(
        checkpoints_url(run),
        ranks,
        run.training.checkpoints,
        plan=run.plan,
        protect=() if state.checkpoint is None else (state.checkpoint,),
    )
    curve = CurveWriter(run.curve, after=state.step, steps=run.steps) if ranks.first else None
    with (
        Feed(partial(batches_of, run, ranks), run.steps) as feed,
        closing(saver),
        nullcontext() if curve is None else closing(curve),
    ):
        return _train(run, engine, ranks, reporter, feed=feed, saver=saver, curve=curve, state=state)


def _train(
    run: TrainingRun,
    engine: Engine,
    ranks: Ranks,
    reporter: Reporter,
    *,
    feed: Feed[Batches],
    saver: CheckpointWriter,
    curve: CurveWriter | None,
    state: TrainState,
) -> Best:
    """Train from a state to the end; see `train_run`.

    Only the first rank has a writer of the curve.
    """

    def report_saved(url: str | None, after: int) -> None:
        if url is not None:
            reporter.checkpoint({"trial": run.name, "step": after, "url": url})

    saved, next_poll = state.step, time.monotonic() + POLL_SECONDS
    engine.train(True)
    meter = StepMeter.of(engine.device, run.training, ranks)
    while state.step < run.pace.end(state.progress):
        votes = (reporter.should_stop(), time.monotonic() >= next_poll, saver.idle)
        values, (stop, poll, idle) = take_step(
            run, engine, ranks, state.step, progress=state.progress, feed=feed, votes=votes, meter=meter
        )
        state.step = step = state.step + 1
        last = step == run.pace.end(state.progress)
        if last or step % run.training.evaluate_every == 0:
            with engine.averaged():
                state.best = best = _judge(run, engine, ranks, state=state, values=values)
            last = last or _hopeless(run.training, step, best)
            values.update(peak_memory(ranks, engine.device))
        reporter.metrics(run.name, step, values)
        if curve is not None:
            curve.add(step, values, last=last)
        if saver.under_way and idle == ranks.world:
            report_saved(saver.advance(), saved)
        if last:
            break
        leave = False
        if poll:
            next_poll = time.monotonic() + POLL_SECONDS
            leave = reporter.should_save()
        if stop or leave or step % run.training.checkpoint_every == 0:
            if curve is not None:
                curve.complete()
            report_saved(_save(run, engine, ranks, saver=saver, state=state), saved)
            saved = step
        if stop or leave:
            report_saved(saver.finish(), saved)
        if stop:
            raise TrainingStopped(
                f"{run.name}: stopped as requested after step {step} of {run.steps}; "
                f"the state is saved in {run.url}, and the same command goes on from there"
            )
    report_saved(saver.finish(), saved)
    if curve is not None:
        curve.complete()
    assert state.best is not None
    return replace(state.best, ended=_ended(run, state))


def _ended(run: TrainingRun, state: TrainState) -> Ended:
    falls = run.pace.falls_from(state.progress)
    return Ended(steps=state.step, decay_from=min(falls, state.step))


def _hopeless(training: TrainingConfig, step: int, best: Best) -> bool:
    """Return whether the last ``patience`` validations did not improve on the best result."""
    return training.patience > 0 and step - best.step >= training.patience * training.evaluate_every


def take_step(
    run: TrainingRun,
    engine: Engine,
    ranks: Ranks,
    step: int,
    *,
    progress: Progress = FRESH,
    feed: Feed[Batches] | None = None,
    votes: Sequence[bool] = (),
    meter: StepMeter | None = None,
) -> tuple[dict[str, float], list[int]]:
    """Take one optimiser step; return its metrics and the counts of ``votes``.

    The count of a vote is the number of ranks on which it is True.

    Without a feed, this function makes the batches itself.

    Randomness inside the model is a function of (seed, step, rank), so a resumed run draws the same numbers as an
    uninterrupted run.

    Raises:
        TrainingError: a loss is not finite; the batch is saved.
    """
    meter = meter or StepMeter()
    watch = meter.start()
    _seed_step(run.seed, step, ranks.rank)
    with watch.part("data"):
        made = batches_of(run, ranks, step) if feed is None else feed.take(step)
        batches = [(inputs, to_device(losses, engine.device)) for inputs, losses in made]
    with watch.part("communication"):
        weights = weights_of(run.terms, [losses for _, losses in batches], ranks, engine.device)
    rate = run.rate * run.pace.factor(step, progress)
    every = run.training.gradient_norms_every
    norms = list[list[Tensor]]() if every and (step + 1) % every == 0 else None
    passes = _Passes(terms=run.terms, engine=engine, step=step, weights=weights, norms=norms)
    with meter.counted():
        engine.step([partial(passes.forward, *batch) for batch in batches], rate, watch)
    sums: list[float | Tensor] = [torch.stack(column).sum() for column in zip(*passes.parts, strict=True)]
    work = meter.work([inputs for inputs, _ in batches])
    with watch.part("communication"):
        found = ranks.total([*sums, *map(float, votes), *work], engine.device)
    means, (*counts, tokens, flops) = found[: len(sums)], found[len(sums) :]
    values = _metrics(run, step, weights, means)
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise not_finite(
            run.name,
            files.join(run.url, "diagnosis"),
            ranks,
            step=step,
            steps=run.steps,
            values=values,
            ids_of=run.data.ids_of,
            micros=micros_of(run, ranks, step),
            batches=batches,
            parts=passes.parts,
        )
    if passes.norms is not None:
        values |= _gradient_norms(run.terms, passes.norms, ranks, engine.device)
    speed = meter.stop(run.order.size(step), tokens, flops)
    return {**values, "learning_rate": rate, **speed}, [round(count) for count in counts]


@dataclass(frozen=True, kw_only=True)
class _Passes:
    """The forward passes of one step on this rank, and their shares of the global losses."""

    terms: Sequence[Term]
    engine: Engine
    step: int
    weights: Sequence[float]
    parts: list[list[Tensor]] = field(default_factory=list)
    """Share of each term, by pass."""
    norms: list[list[Tensor]] | None = None
    """Squared norm of each term's gradient, by pass; None = norms are not reported."""

    def forward(self, inputs: Batch, batch: LossBatch) -> Tensor:
        """Run one micro-batch forward and return its share of the global loss."""
        terms, step, weights = self.terms, self.step, self.weights
        request = head_request(terms, batch, step=step, weights=weights, norms=self.norms is not None)
        output = self.engine.forward(inputs, request)
        loss, part = combine(terms, output, batch, step=step, weights=weights)
        self.parts.append(part)
        if self.norms is not None:
            self.norms.append(squares(terms, output, batch, step=step, weights=weights))
        return loss


def _gradient_norms(
    terms: Sequence[Term], norms: Sequence[Sequence[Tensor]], ranks: Ranks, device: torch.device
) -> dict[str, float]:
    """Return the norm of each term's gradient over the whole global batch."""
    found = ranks.total([torch.stack(column).sum() for column in zip(*norms, strict=True)], device)
    return {f"gradient_norm_{term.name}": math.sqrt(square) for term, square in zip(terms, found, strict=True)}


def _metrics(run: TrainingRun, step: int, weights: Sequence[float], means: Sequence[float]) -> dict[str, float]:
    """Return the global means of the terms with weight in the batch, and their weighted sum."""
    found = {term.name: mean for term, weight, mean in zip(run.terms, weights, means, strict=True) if weight > 0}
    loss = sum(term.weight(step) * found[term.name] for term in run.terms if term.name in found)
    return {"loss": loss, **{f"loss_{name}": mean for name, mean in found.items()}}


def _judge(run: TrainingRun, engine: Engine, ranks: Ranks, *, state: TrainState, values: dict[str, float]) -> Best:
    """Validate, add the result to ``values``, and return the best result so far."""
    step, best = state.step, state.best
    score = run.judge.score(engine, ranks, replace(run.budget, group=1))
    if not math.isfinite(score.value):
        raise Diverged(
            f"{run.name}: the validation loss is {score.value} after step {step} of {run.steps}; "
            "lower the learning rate, or prefer precision bf16 or fp32 to fp16"
        )
    values.update(score.metrics, epoch=step / run.epoch_steps)
    state.last_validation = score
    state.progress = run.pace.after(state.progress, step, score.value)
    level = run.pace.level(state.progress, step, score.value)
    if best is not None and best.level <= level:
        return best
    return Best(score=score, step=step, level=level, weights=engine.weights())


def _save(run: TrainingRun, engine: Engine, ranks: Ranks, *, saver: CheckpointWriter, state: TrainState) -> str | None:
    """Begin a checkpoint; return the URL of the previous one if it is completed now."""
    best, last = state.best, state.last_validation

    def write(folder: Path) -> None:
        (folder / "engine").mkdir()
        engine.save(folder / "engine")
        if best is not None and ranks.first:
            (folder / WEIGHTS_FILE).write_bytes(weights_bytes(best.weights))

    cursor = cursor_at(state.step, len(run.rows), run.training.global_batch)
    record = None if best is None else best.record
    saved = SavedState(cursor=cursor, best=record, validation=last, progress=state.progress)
    return saver.start(write, step=state.step, state=saved.to_dict())


def _restore(run: TrainingRun, engine: Engine, ranks: Ranks) -> TrainState:
    """Load the newest checkpoint, if there is one, and return the state of the run."""
    found = find_checkpoint(checkpoints_url(run), ranks)
    if found is None:
        return TrainState()
    check_plan(found.plan, run.plan, f"checkpoint {found.url}", folder=checkpoints_url(run))
    saved = SavedState.from_dict(found.state, found.url)
    with fetched(found, ranks) as local:
        try:
            engine.load(local / "engine")
        except TrainingError as error:
            raise TrainingError(f"{error}; or delete {checkpoints_url(run)} to train from the start") from error
        weights = read_weights((local / WEIGHTS_FILE).read_bytes()) if saved.best is not None and ranks.first else {}
    return TrainState(
        step=found.step,
        best=None if saved.best is None else Best.of(saved.best, weights),
        last_validation=saved.validation,
        progress=saved.progress,
        checkpoint=found.url,
    )


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every random generator that a model may use."""
    drawn = int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint32)[0])
    torch.manual_seed(drawn)
    random.seed(drawn)
    np.random.seed(drawn)
