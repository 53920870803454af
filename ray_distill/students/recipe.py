"""Choose the settings of a training that are not given, by the rows and the student.

What was measured of these rules is in ``tests/benchmarks/README.md``, "Defaults of a training". The rates that are
tried first follow published ones; their shares for copied weights are conventions, which nothing here has confirmed.
"""

import math
from collections.abc import Mapping

from ray_distill.config import TrainingConfig
from ray_distill.students.order.cursor import steps_per_epoch

#: Smallest and largest batch that is chosen.
BATCHES = (16, 256)
#: Examples between two validations, by validation row: validating a row takes about a third of training on it.
_ROWS_A_VALIDATION = 6
#: Most validations a pass.
_MOST_A_PASS = 20
#: Rows of a batch where no rows are known yet.
_BATCH = 64
#: Learning rate of AdamW for a student of `_PARAMETERS` drawn parameters without embeddings, published for language
#: models of that size (Brown et al. 2020, arXiv 2005.14165, table 2.1: 12 layers of width 768); as there, larger
#: students have smaller rates. A step moves few rows of an embedding, so a large one asks for no smaller rate.
_RATE, _PARAMETERS, _POWER = 6e-4, 85e6, -1 / 3
#: Largest rate that is tried first.
_MOST = 1e-2
#: By the source of the student's weights: the share of that rate. Weights that are copied have something to lose.
_SHARES = {"teacher_layers": 0.5, "teacher_width": 0.5, "checkpoint": 0.1}
#: Factor between two rates that are tried.
STEP = 3.0
#: Fewest and most rates that an arm tries.
FEWEST_RATES, MOST_RATES = 3, 5
#: Share of the best loss within which a smaller rate is preferred, in a training of so many times the steps that it was
#: tried for: what a short run likes is too large for a long one, and right for one that is hardly longer.
_NEAR, _LONG = 0.5, 10.0
#: Share of an arm's most steps that a run to try a rate has at most, where a pass is more.
PROBE_SHARE = 0.05
#: Fewest steps of that run, and the share of an arm's steps that it has at most.
PROBE_STEPS, PROBE_MOST = 150, 1 / 6


def settled(training: TrainingConfig, rows: int, validation_rows: int) -> TrainingConfig:
    """Return the settings with a batch and an interval of validation; given ones stay.

    The batch is the power of two next to the root of the rows, from 16 to 256, as a multiple of the workers. An
    interval has six times the examples of a validation, so that validating takes about a twentieth of the time, but it
    is a pass at most, and a twentieth of one at least.

    Args:
        training: the configured settings.
        rows: train rows of the snapshot; 0 = not known yet.
        validation_rows: validation rows.
    """
    batch = training.global_batch or _batch(training, rows)
    epoch = steps_per_epoch(max(rows, 1), batch)
    every = min(max(math.ceil(_ROWS_A_VALIDATION * validation_rows / batch), math.ceil(epoch / _MOST_A_PASS)), epoch)
    return training.model_copy(update={"global_batch": batch, "evaluate_every": training.evaluate_every or every})


def _batch(training: TrainingConfig, rows: int) -> int:
    low, high = BATCHES
    chosen = _BATCH if rows == 0 else min(max(2 ** round(math.log2(math.sqrt(rows))), low), high)
    unit = math.lcm(training.least_workers, training.most_workers)
    return math.ceil(chosen / unit) * unit


def first_rates(parameters: int, source: str) -> tuple[float, ...]:
    """Return the learning rates that each arm tries first, ascending, where none is given.

    The middle one suits a student of so many parameters that starts from such weights; the others are `STEP` times
    smaller and larger.

    Args:
        parameters: of the student, without its embeddings.
        source: where its weights come from, as ``student.model.from``; ``adapters`` if adapters alone are trained.
    """
    middle = _RATE * (max(parameters, 1) / _PARAMETERS) ** _POWER * _SHARES.get(source, 1.0)
    middle = float(f"{min(middle, _MOST):.1g}")
    return tuple(float(f"{middle * factor:.2g}") for factor in (1 / STEP, 1.0, STEP))


def probe_steps(steps: int, epoch_steps: float) -> int:
    """Return the steps of a run that tries a rate: a pass, or less of a long training.

    Args:
        steps: of the arm, at most.
        epoch_steps: of a pass over its rows.
    """
    return max(1, round(max(min(PROBE_SHARE * steps, epoch_steps), min(PROBE_STEPS, PROBE_MOST * steps))))


def some_rate(training: TrainingConfig) -> float:
    """Return a learning rate for a step whose result is dropped: the largest that is given."""
    return max(training.learning_rate, default=1e-3)


def chosen_rate(scores: Mapping[float, float], longer: float) -> float:
    """Return the best rate, or for a long training the smallest one next to it.

    Args:
        scores: by rate that was tried, the validation loss.
        longer: how many times as many steps the training has at most.
    """
    best, near = min(scores.values()), _NEAR if longer >= _LONG else 0.0
    return min(rate for rate, loss in scores.items() if loss <= best * (1 + near))


def next_rate(scores: Mapping[float, float], longer: float) -> float | None:
    """Return the rate that is to be tried next; None = enough are known.

    A smaller one where the smallest is the best; a larger one where the largest would be chosen. Where a smaller rate
    is chosen although the largest is the best, a still larger one almost never changes the choice: in 1 of 27 trainings
    of texts, digits and language models that were tried on both.

    Args:
        scores: by rate that was tried, the validation loss; infinite where the training diverged.
        longer: as in `chosen_rate`.
    """
    rates = sorted(scores)
    best = min(rates, key=lambda rate: scores[rate])
    if len(rates) >= MOST_RATES or not math.isfinite(scores[best]):
        # Everything diverged: only a smaller rate can help.
        return None if len(rates) >= MOST_RATES else float(f"{rates[0] / STEP:.2g}")
    if best == rates[0]:
        return float(f"{best / STEP:.2g}")
    return float(f"{rates[-1] * STEP:.2g}") if chosen_rate(scores, longer) == rates[-1] else None
