"""Take one training step of a student on made-up labels, with small batches."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from ray_distill.config import Campaign, TrainingConfig
from ray_distill.errors import ConfigError, DistillError, TrainingError
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.signal import DISTRIBUTIONS
from ray_distill.models.core.model import Model
from ray_distill.runtime.model_checks.made_up_labels import made_up_rows, made_up_signal, made_up_truth
from ray_distill.storage.scratch import Scratch
from ray_distill.students.data.answer_format import AnswerFormat, learn_facet
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.engines.engine import checkpoint_activations
from ray_distill.students.engines.torch_engine import TorchEngine
from ray_distill.students.loop.train_loop import take_step
from ray_distill.students.loop.training_run import TrainingRun
from ray_distill.students.modules.student_module import StudentModule, make_projections
from ray_distill.students.objective.validate_losses import pairs_of, required_layers, scales_of
from ray_distill.students.objective.weighted_losses import Term, build_terms, group_of
from ray_distill.students.process_group import Ranks
from ray_distill.students.recipe import settled, some_rate
from ray_distill.tasks.catalogue import get_task

#: Most rows of a made-up forward pass, unless a loss compares more of them.
ROWS = 4
ALONE = Ranks(rank=0, world=1)


def try_step(config: Campaign, student: Model, manifest: StoreManifest, widths: tuple[int, ...] | None) -> None:
    """Train the student for one step, in passes as small as any of the run.

    A pass has at most `ROWS` rows: sizes above behave alike. Precision is float32 and the engine plain torch, which
    need no accelerator and no compiler.

    Raises:
        ConfigError: losses, labels and student do not match.
        TrainingError: the student does not take the step; the message has its batch sizes.
    """
    with _same_random_numbers(), Scratch("check") as scratch:
        run, module = _prepare(config, student, manifest, widths=widths, folder=str(scratch.path))
        if run is None:
            return
        engine = TorchEngine(module, run.training, ALONE)
        engine.train(True)
        try:
            take_step(run, engine, ALONE, 0)
        except DistillError as error:
            raise TrainingError(f"student.model: a training step of {student.url} on made-up rows: {error}") from error
        except Exception as error:
            raise TrainingError(
                _explained(error, student, run.training, settled(config.student.training, 0, 0))
            ) from error
        finally:
            engine.close()


def has_batch_norm(module: nn.Module) -> bool:
    """Return whether a module's answers to a row depend, in training, on the rows beside it."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def _explained(error: Exception, student: Model, tried: TrainingConfig, training: TrainingConfig) -> str:
    first = str(error).splitlines()[0] if str(error) else "no message"
    found = f"student.model: {student.url} cannot take a training step ({type(error).__name__}: {first})"
    if tried.micro_batch == 1 and has_batch_norm(student.module):
        sizes = f"micro_batch {training.micro_batch}, micro_tokens {training.micro_tokens}"
        return (
            f"{found}: it has batch norms, which need at least two rows a forward pass, and passes may have one row "
            f"with global_batch {training.global_batch} and {sizes}; set student.training.micro_batch and global_batch "
            "to 2 or more, and micro_tokens to 0"
        )
    return (
        f"{found}, tried with {tried.global_batch} row(s) in passes of {tried.micro_batch}; the run has global_batch "
        f"{training.global_batch} and micro_batch {training.micro_batch}: correct the model, or its batch sizes"
    )


def _prepare(
    config: Campaign, student: Model, manifest: StoreManifest, *, widths: tuple[int, ...] | None, folder: str
) -> tuple[TrainingRun | None, nn.Module]:
    task, losses = get_task(config.task), config.student.losses
    learn = learn_facet(task.answers)
    answers = learn.answer_format(
        task=task,
        model=student,
        manifest=manifest,
        snapshot_classes=manifest.space.names,
        training=config.student.training,
    )
    pairs = pairs_of(losses, tuple(manifest.hidden), student, learn.LOSSES)
    if config.student.model.kept_tokens is not None and manifest.pool == "token" and any(pairs.values()):
        raise ConfigError(
            "student.model.vocabulary: a student with fewer tokens cuts some texts into more of them than its teacher, "
            "and labels.hidden.pool is token, one state a token: set vocabulary to null, or pool to mean, cls or last"
        )
    terms = build_terms(
        losses,
        kinds=learn.LOSSES,
        steps=1,
        temperatures=manifest.distributions.temperatures,
        layers=pairs,
        scales=dict.fromkeys(manifest.hidden, 1.0),
    )
    training = _scaled(settled(config.student.training, 0, 0), group_of(terms))
    data = _examples(answers, student, manifest, rows=training.global_batch, widths=widths)
    if data is None:
        return None, student.module
    terms = build_terms(
        losses,
        kinds=learn.LOSSES,
        steps=1,
        temperatures=manifest.distributions.temperatures,
        layers=pairs,
        scales=scales_of(data),
    )
    run = TrainingRun(
        name="student",
        url=folder,
        curve=folder,
        data=data,
        rows=np.arange(data.rows, dtype=np.int64),
        steps=1,
        seed=config.seed,
        terms=terms,
        judge=learn.validator(data),
        training=training,
        rate=some_rate(training),
        plan={},
    )
    return run, _bundle(config, student, terms, data=data, pool=manifest.pool)


def _bundle(
    config: Campaign, student: Model, terms: tuple[Term, ...], *, data: PositionExamples, pool: str
) -> StudentModule:
    module = copy.deepcopy(student.module)
    if config.student.training.activation_checkpointing:
        checkpoint_activations(module)
    projected, plain = required_layers(terms)
    projections = make_projections(student, layers=projected, widths=data.widths, seed=config.seed)
    fuse = learn_facet(get_task(config.task).answers).FUSED
    return StudentModule(module, projections, plain, pool=pool, fuse=fuse)


def _scaled(training: TrainingConfig, group: int) -> TrainingConfig:
    """Return settings of one step of few rows, whose passes are as small as any of the run's."""
    lone = min(training.micro_batch, training.global_batch) == 1 or training.micro_tokens > 0
    rows = group if group > 1 else 1 if lone else min(ROWS, training.micro_batch, training.global_batch)
    changes = {"engine": "torch", "precision": "fp32", "gpus": 0, "workers": 1, "micro_tokens": 0, "deepspeed": {}}
    return training.model_copy(update={**changes, "global_batch": rows, "micro_batch": rows})


def _examples(
    answers: AnswerFormat, student: Model, manifest: StoreManifest, *, rows: int, widths: tuple[int, ...] | None
) -> PositionExamples | None:
    encoded = made_up_rows(answers.task, student, rows)
    signal = made_up_signal(answers.task, manifest, encoded, widths)
    if signal is None:
        return None
    stored, answered = np.arange(encoded.rows, dtype=np.int64), answers.positions(encoded)
    signal = answers.align(signal, stored, encoded, answered)
    return PositionExamples(
        format=answers,
        encoded=encoded,
        answered=answered,
        truth=answers.truth(made_up_truth(answers.task.answers, encoded), encoded),
        stored=stored,
        distil=np.ones(encoded.rows, dtype=np.bool_),
        distributions=signal.distributions if DISTRIBUTIONS in signal.parts else None,
        hidden=signal.hidden,
    )


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Leave the generators of torch, numpy and Python as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
