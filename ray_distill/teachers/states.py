"""Reduce final hidden states to distributions, with the head applied to slices."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from ray_distill.labels.model.distributions import Distributions
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.reduce import Places, reduce_logits

#: Logits that exist at once: enough for a product that keeps its device busy, too few to fill its memory.
_LOGITS = 1 << 24
_GPU_LOGITS = 1 << 27


def reduce_states(
    states_PD: Tensor,
    head: nn.Linear,
    request: LabelRequest,
    row_ids: pa.Array,
    *,
    places: Places,
    reduce: Callable[[Tensor, LabelRequest, pa.Array, Places], Distributions] = reduce_logits,
) -> Distributions:
    """Apply ``reduce`` to ``head(states_PD)`` by slices, so that no ``[P, V]`` exists.

    Args:
        states_PD: one a position of ``places``, in order; in the head's dtype, on its device.
        head: the model's.
        request: the stored form.
        row_ids: of the rows.
        places: the positions; ``logits`` is None.
        reduce: `reduce_logits`, or another with its parameters.

    Raises:
        TeacherRefused: as `reduce_logits`.
    """
    limit = _LOGITS if states_PD.device.type == "cpu" else _GPU_LOGITS
    step, positions = max(1, limit // head.out_features), len(places.position)
    parts = [
        reduce(head(states_PD[at : at + step]), request, row_ids, _piece(places, at, at + step))
        for at in range(0, max(positions, 1), step)
    ]
    return parts[0] if len(parts) == 1 else _join(parts, places)


def _piece(places: Places, start: int, stop: int) -> Places:
    """Take some of the positions; every row is there, with none, some or all of its own."""
    stop = min(stop, len(places.position))
    return Places(
        row_offsets=places.row_offsets.clip(start, stop) - start, position=places.position[start:stop], logits=None
    )


def _join(parts: Sequence[Distributions], places: Places) -> Distributions:
    """Put the positions of all parts behind one another."""
    drawn = [part.draws for part in parts if part.draws is not None]
    draws = (
        replace(
            drawn[0],
            count=np.concatenate([part.count for part in drawn]),
            log_normaliser=np.concatenate([part.log_normaliser for part in drawn]),
        )
        if drawn
        else None
    )
    odds = [part.log_odds for part in parts if part.log_odds is not None]
    lengths = np.concatenate([np.diff(part.entry_offsets) for part in parts])
    return replace(
        parts[0],
        row_offsets=places.row_offsets,
        position=places.position,
        draws=draws,
        entry_offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        ids=np.concatenate([part.ids for part in parts]),
        logp=np.concatenate([part.logp for part in parts]),
        log_odds=np.concatenate(odds) if odds else None,
        log_tail=np.concatenate([part.log_tail for part in parts]),
        entropy=np.concatenate([part.entropy for part in parts]),
    )
