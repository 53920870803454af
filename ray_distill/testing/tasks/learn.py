"""Conformance of a task's learning: one step from stored labels, and weights of rows."""

import copy
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ray_distill.config import TrainingConfig
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.losses.base import LossBatch, StudentOutput
from ray_distill.students.calibration.collect import run_rows
from ray_distill.students.data.answer_format import learn_facet
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import PositionExamples, RowWeights
from ray_distill.students.engines.engine import Engine
from ray_distill.students.engines.torch_engine import TorchEngine
from ray_distill.students.loop.train_loop import take_step
from ray_distill.students.loop.training_run import TrainingRun
from ray_distill.students.modules.student_module import StudentModule, make_projections
from ray_distill.students.objective.validate_losses import pairs_of, required_layers, scales_of
from ray_distill.students.objective.weighted_losses import Term, build_terms
from ray_distill.students.order.cursor import Index
from ray_distill.students.process_group import Ranks
from ray_distill.students.recipe import some_rate
from ray_distill.testing.tasks.case import TaskCase
from ray_distill.testing.tasks.store import stored

ALONE = Ranks(rank=0, world=1)
#: Relative, in float32: sums of losses are added in other orders.
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A copy of the student before its first step, with the labels that it learns from."""

    trial: TrainingRun
    engine: Engine
    data: PositionExamples

    def losses(self, rows: Index, weight_B: RowWeights | None = None) -> dict[str, tuple[float, float]]:
        """Return sum and weight of each loss on some rows with some weights; None = 1."""
        output, batch = self.run(rows, weight_B)
        return {term.name: measured(term, output, batch) for term in self.trial.terms}

    def run(self, rows: Index, weight_B: RowWeights | None = None) -> tuple[StudentOutput, LossBatch]:
        """Return the student's output for some rows, and their batch."""
        inputs, batch = self.data.batch(rows, weight_B)
        self.engine.train(False)
        with torch.no_grad():
            return self.engine.forward(inputs), batch


def check_step(case: TaskCase) -> None:
    """Require one optimiser step to change the weights, with finite losses."""
    with lesson(case) as found:
        before = found.engine.weights()
        values, _ = take_step(found.trial, found.engine, ALONE, 0)
        for name in ("loss", *(f"loss_{term.name}" for term in found.trial.terms)):
            assert math.isfinite(values.get(name, math.nan)), f"{name} is {values.get(name)}"
        after = found.engine.weights()
        changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
        assert changed, "a step changed no weight"
        odd = [name for name, value in after.items() if value.is_floating_point() and not value.isfinite().all()]
        assert not odd, f"weights that are not finite after a step: {odd}"
        score = found.trial.judge.score(found.engine, ALONE, replace(found.trial.budget, group=1))
        assert math.isfinite(score.value) and score.metrics, f"the validation loss is {score.value}"


def check_weights(case: TaskCase) -> None:
    """Require losses to be sums over rows, which scale with the rows' weights.

    A row of weight 0 must not count, nor a row without a truth in losses on true labels. A row of weight n must count
    like n rows, because rows that came several times are stored once.
    """
    with lesson(case) as found:
        rows = np.arange(found.data.rows, dtype=np.int64)
        _check_scale(found, rows)
        padded, alone = found.losses(rows, np.isin(rows, rows[::2])), found.losses(rows[::2])
        for name, sums in alone.items():
            assert np.allclose(padded[name], sums, rtol=TOLERANCE, atol=1e-6), f"{name}: rows of weight 0 count"
        _check_repeated(found, rows)
        if found.data.format.truth_columns:
            _check_unlabelled(found)


def _check_scale(found: Lesson, rows: Index) -> None:
    output, batch = found.run(rows)
    double = replace(batch, example_weight_B=2 * batch.example_weight_B)
    for term in found.trial.terms:
        once, twice = measured(term, output, batch), measured(term, output, double)
        assert once[1] > 0, f"{term.name} has no weight in a batch of all rows"
        assert np.allclose(twice, np.multiply(2, once), rtol=TOLERANCE), f"{term.name} does not scale with the weights"


def _check_repeated(found: Lesson, rows: Index) -> None:
    """Require a row of weight n to count like n equal rows, in losses that do not compare rows."""
    times = 1 + rows % 3
    weighed, repeated = found.losses(rows, times.astype(np.float32)), found.losses(np.repeat(rows, times))
    for term in found.trial.terms:
        if term.loss.group_rows() is None:
            same = np.allclose(weighed[term.name], repeated[term.name], rtol=TOLERANCE, atol=1e-6)
            assert same, f"{term.name}: a row of weight n does not count like n rows"


def _check_unlabelled(found: Lesson) -> None:
    known = found.data.labelled
    assert known.any() and not known.all(), "rows with and without a truth are needed"
    without = found.losses(np.flatnonzero(~known))
    for term in found.trial.terms:
        if term.loss.follows_labels:
            assert without[term.name] == (0, 0), f"{term.name} learns from rows without a truth: {without[term.name]}"
        else:
            assert without[term.name][1] > 0, f"{term.name} needs a truth, and follows the teacher"


def check_confidence(case: TaskCase) -> None:
    """Require probabilities that a temperature can be fitted to; families without any pass.

    Targets must be probabilities, and a model's cross-entropy with its own probabilities must be least at T = 1.
    """
    confidence = learn_facet(case.task.answers).CONFIDENCE
    if confidence is None:
        return
    with lesson(case) as found:
        data, training = found.data, found.trial.training
        for truth, own in ((True, data.labelled), (False, data.distil)):
            for _, logits_BV, batch in run_rows(case.student, data, np.flatnonzero(own), training):
                logits_NV, target_NV = logits_BV.numpy(), confidence.targets(logits_BV, batch, truth=truth).numpy()
                assert ((target_NV >= 0) & (target_NV <= 1)).all(), "a target is not a probability"
                own_NV, ones_N = confidence.probabilities(logits_NV), np.ones(len(logits_NV))
                least = confidence.losses(logits_NV, own_NV)
                for other in (logits_NV / 2, logits_NV * 2):
                    assert (confidence.losses(other, own_NV) >= least - 1e-9).all(), "T = 1 is not the least loss"
                assert 0 <= confidence.calibration_error(logits_NV, target_NV, ones_N) <= 1


def measured(term: Term, output: StudentOutput, batch: LossBatch) -> tuple[float, float]:
    """Return a loss's sum over a batch, and its weight."""
    loss = term.at(0)
    value: Tensor = loss(output, batch)
    return float(value), float(loss.weight(batch))


@contextmanager
def lesson(case: TaskCase) -> Iterator[Lesson]:
    """Prepare the case's student to learn from its teacher's labels, stored and read back."""
    training = case.config.student.training.model_copy(
        update={"engine": "torch", "global_batch": case.rows.num_rows, "micro_batch": case.rows.num_rows, "packed": 0}
    )
    with stored(case) as found, tempfile.TemporaryDirectory(prefix="ray-distill-conformance-") as folder:
        manifest = found.labels.manifest
        student = replace(case.student, module=copy.deepcopy(case.student.module))
        answers = learn_facet(case.task.answers).answer_format(
            task=case.task, model=student, manifest=manifest, snapshot_classes=case.classes, training=training
        )
        labels = found.labels.read(tuple(manifest.hidden))
        data = build_examples(case.rows, answers=answers, processor=student.processor, labels=labels)
        terms, engine = _objective(replace(case, student=student), manifest, data, training)
        trial = TrainingRun(
            name="student",
            url=folder,
            curve=folder,
            data=data,
            rows=np.arange(data.rows, dtype=np.int64),
            steps=2,
            seed=case.config.seed,
            terms=terms,
            judge=learn_facet(case.task.answers).validator(data),
            training=training,
            rate=some_rate(training),
            plan={},
        )
        yield Lesson(trial=trial, engine=engine, data=data)
        engine.close()


def _objective(
    case: TaskCase, manifest: StoreManifest, data: PositionExamples, training: TrainingConfig
) -> tuple[tuple[Term, ...], Engine]:
    losses, model, kinds = case.config.student.losses, case.student, learn_facet(case.task.answers).LOSSES
    terms = build_terms(
        losses,
        kinds=kinds,
        steps=2,
        temperatures=manifest.distributions.temperatures,
        layers=pairs_of(losses, tuple(manifest.hidden), model, kinds),
        scales=scales_of(data),
    )
    projected, plain = required_layers(terms)
    projections = make_projections(model, layers=projected, widths=data.widths, seed=case.config.seed)
    bundle = StudentModule(model.module, projections, plain=plain, pool=manifest.pool)
    return terms, TorchEngine(bundle, training, ALONE)
