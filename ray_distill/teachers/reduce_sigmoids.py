"""Reduce logits that are one sigmoid a class each: all of them are stored, as log odds."""

import pyarrow as pa
import torch
from torch import Tensor

from ray_distill.errors import TeacherRefused
from ray_distill.labels.model.distributions import Distributions, bernoulli
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.reduce import Places, one_a_row


def reduce_sigmoids(
    logits_NV: Tensor, request: LabelRequest, row_ids: pa.Array | None = None, places: Places | None = None
) -> Distributions:
    """Return the log odds of all classes at ``places``, in float32.

    NaN logits come out as NaN, for the store's writer to put in quarantine. The declared temperatures need nothing of
    their own: σ(z / T) follows from z.

    Args:
        logits_NV: on any device, in any dtype.
        request: the stored form; dense alone.
        row_ids: unused; nothing is drawn.
        places: positions of the logits; default: one a row.

    Raises:
        TeacherRefused: another estimator than dense.
    """
    if request.estimator != "dense":
        raise TeacherRefused(
            f"the estimator {request.estimator!r} is for a distribution over all classes, and these classes are a yes "
            "or no each: use dense"
        )
    places = one_a_row(len(logits_NV)) if places is None else places
    chosen_PV = logits_NV
    if places.logits is not None:
        chosen_PV = logits_NV.index_select(0, torch.from_numpy(places.logits).to(logits_NV.device))
    return bernoulli(
        chosen_PV.float().cpu().numpy(),
        row_offsets=places.row_offsets,
        position=places.position,
        temperatures=request.temperatures,
    )
