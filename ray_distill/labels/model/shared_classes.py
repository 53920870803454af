"""Put distributions over other numbers of classes, of which both sides share the first ones.

Models with one tokenizer may have padded their vocabularies differently: Qwen2.5 has 152,064 rows in its large models
and 151,936 in its small ones. Classes beyond the tokenizer have no token, and no text has them as its truth.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ray_distill.errors import LabelError
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.ragged import owner, running

_Floats64 = npt.NDArray[np.float64]


def over_classes(found: Distributions, classes: int) -> Distributions:
    """Return distributions over more or fewer classes, which share their first ids.

    *More* classes: the teacher gives none of its mass to the further ones. *Fewer* classes: the teacher's mass on the
    classes that are left out moves to the tail, at each temperature; a sum of probabilities, hence exact. A position
    that stores every remaining class has no class for a tail: it becomes the distribution given one of them, which is
    exact at each temperature too.

    Raises:
        LabelError: fewer classes, and entries were drawn, whose targets are right only over all classes; or the classes
            are a yes or no each.
    """
    if classes >= found.classes:
        return replace(found, classes=classes)
    if found.draws is not None or found.log_odds is not None:
        raise LabelError(
            f"drawn labels over {found.classes} classes cannot be put over {classes}: draws stand for the mass of all "
            "classes, and some of them were drawn from those left out"
        )
    return _restricted(found, classes, found.ids < classes)


def _restricted(found: Distributions, classes: int, kept_E: npt.NDArray[np.bool_]) -> Distributions:
    at_E, positions = owner(found.entry_offsets), len(found.position)
    stored_P = np.bincount(at_E[kept_E], minlength=positions)
    whole_P = stored_P == classes
    columns = range(len(found.temperatures))
    log_tail_PT = np.stack([_grown(found, kept_E, at_E, column=column) for column in columns], axis=1)
    log_tail_PT[whole_P] = -np.inf
    logp_E, own_E = found.logp[kept_E].astype(np.float64), at_E[kept_E]
    mass_P = np.bincount(own_E, np.exp(logp_E), positions)
    logp_E = logp_E - np.where(whole_P, np.log(np.where(whole_P, mass_P, 1.0)), 0.0)[own_E]
    terms_E = np.where(np.isneginf(logp_E), 0.0, np.exp(logp_E) * np.where(np.isneginf(logp_E), 0.0, logp_E))
    entropy_P = np.where(whole_P, -np.bincount(own_E, terms_E, positions), found.entropy)
    return replace(
        found,
        classes=classes,
        entry_offsets=running(stored_P),
        ids=found.ids[kept_E],
        logp=logp_E.astype(np.float32),
        log_tail=log_tail_PT.astype(np.float32),
        entropy=entropy_P.astype(np.float32),
    )


def _grown(
    found: Distributions, kept_E: npt.NDArray[np.bool_], at_E: npt.NDArray[np.int64], *, column: int
) -> _Floats64:
    """Return the log mass outside the kept entries at the temperature of a column.

    Stored classes have the share ``1 - tail`` at each temperature, in proportion to ``p^(1/T)`` (MATHS.md §3).
    """
    log_tail_P = found.log_tail[:, column].astype(np.float64)
    scaled_E = np.exp(found.logp.astype(np.float64) / found.temperatures[column])
    all_P = np.bincount(at_E, scaled_E, len(log_tail_P))
    dropped_P = np.bincount(at_E[~kept_E], scaled_E[~kept_E], len(log_tail_P))
    share_P = np.divide(dropped_P, all_P, out=np.zeros_like(all_P), where=all_P > 0)
    tail_P = np.exp(log_tail_P)
    with np.errstate(divide="ignore"):
        grown: _Floats64 = np.where(share_P > 0, np.log(tail_P + (1.0 - tail_P) * share_P), log_tail_P)
    return grown
