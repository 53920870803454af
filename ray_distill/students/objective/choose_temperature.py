"""Choose the temperature of soft labels by the teacher's entropy, where none is given.

A teacher that is almost sure of every row shows nothing but its choice at T = 1: a higher temperature shows the student
which other classes a row is like (Hinton et al., arXiv 1503.02531, §2). A teacher that is unsure already does so. What
was measured of the rule is in ``tests/benchmarks/README.md``, "Defaults of a training".
"""

from collections.abc import Mapping

import numpy as np

from ray_distill.config import LossConfig
from ray_distill.labels.model.distributions import Distributions, Floats
from ray_distill.students.calibration.collect import Units
from ray_distill.students.calibration.fit import Confidence
from ray_distill.students.objective.loss_settings import AUTO

#: Share of the greatest entropy that the softened teacher should have on average.
_SHARE = 0.3
#: Rows of the calibration split that are read at most, the first by id, which is a hash.
_ROWS = 10_000


def chosen_temperature(units: Units, *, confidence: Confidence | None) -> float:
    """Return the smallest declared temperature at which the teacher is unsure enough.

    Its mean entropy is then `_SHARE` of the logarithm of the number of classes; where it is nowhere reached, the
    greatest temperature is returned. 1 is returned for drawn labels, for classes of a yes or no each, and without
    labels.

    Args:
        units: gives the calibration split, unit by unit.
        confidence: the family's probabilities; None = its models are used at temperatures of their users' own, and
            learn at 1.
    """
    if confidence is None:
        return 1.0
    sums, count, greatest = dict[float, float](), 0, 0.0
    for unit in units():
        found = unit.distributions
        if found is None:
            return 1.0
        assert isinstance(found, Distributions), "one unit is not joined of parts"
        if found.draws is not None or found.family != "categorical" or len(found.temperatures) == 1:
            return 1.0
        for column, temperature in enumerate(found.temperatures):
            if temperature >= 1:
                sums[temperature] = sums.get(temperature, 0.0) + float(softened_entropies(found, column).sum())
        count, greatest = count + len(found.position), float(np.log(found.classes))
        if count >= _ROWS:
            break
    enough = [temperature for temperature in sums if sums[temperature] >= _SHARE * greatest * count]
    return min(enough, default=max(sums, default=1.0)) if count else 1.0


def softened_entropies(found: Distributions, column: int) -> Floats:
    """Return the entropy of each position at a declared temperature, ``[P]``, in nats.

    The mass outside the stored classes counts as one class more, so that it is a lower bound where there is some.

    Args:
        found: exact classes, at least one a position.
        column: place of the temperature among the declared ones.
    """
    starts, sizes = found.entry_offsets[:-1], np.diff(found.entry_offsets)
    scaled_E = found.logp.astype(np.float64) / found.temperatures[column]
    scaled_E -= np.repeat(np.maximum.reduceat(scaled_E, starts), sizes)
    total_P = np.add.reduceat(np.exp(scaled_E), starts)
    tail_P = np.exp(found.log_tail[:, column].astype(np.float64))
    p_E = np.exp(scaled_E) * np.repeat((1 - tail_P) / total_P, sizes)
    return np.asarray(np.add.reduceat(_information(p_E), starts) + _information(tail_P))


def _information(p: Floats) -> Floats:
    """Return ``-p ln p``, which is 0 where p is."""
    return np.asarray(-p * np.log(np.where(p > 0, p, 1.0)))


def needs_temperature(losses: Mapping[str, LossConfig]) -> bool:
    """Return whether a loss leaves its temperature to the labels."""
    return any(loss.settings.get("temperature") == AUTO for loss in losses.values())


def with_temperature(losses: Mapping[str, LossConfig], temperature: float) -> dict[str, LossConfig]:
    """Return the losses with a temperature in the place of auto."""
    return {
        name: loss.model_copy(update={"temperature": temperature}) if loss.settings.get("temperature") == AUTO else loss
        for name, loss in losses.items()
    }
