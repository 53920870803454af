"""Convert vLLM's flat log-probabilities to the stored form; pure numpy, without vLLM."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_distill.errors import LabelError
from ray_distill.labels.model.distributions import Distributions

#: The least mass of a tail that a difference can measure, 3e-5. The log-probabilities are float32, and so is the sum
#: over the vocabulary that normalises them: it moves the head, and with it the difference to 1, by as much whatever the
#: tail is. (Measured on a CPU: by 4e-7 of 264 tokens, by up to 1.9e-5 of 49,152.)
LEAST_TAIL = 2.0**-15


@dataclass(frozen=True, kw_only=True)
class Flat:
    """Outputs of vLLM at N tokens of all rows: K classes each, the likeliest first."""

    row_offsets: npt.NDArray[np.int64]
    """``[R+1]``"""
    ids_NK: npt.NDArray[np.int32]
    logp_NK: npt.NDArray[np.float32]


def flat_of(outputs: Sequence[Any], k: int) -> Flat:
    """Take the k likeliest out of vLLM's outputs.

    ``FlatLogprobs`` has, for each token, the actual token first (the one that was read there, or written) and then
    the k likeliest, the actual token once more if it is one of them; nothing for a prompt's first token. So what
    vLLM adds is the first column, whatever its content, and no token is processed by itself.

    Args:
        outputs: ``RequestOutput`` with flat ``prompt_logprobs``, and flat ``logprobs`` of one written token.
        k: classes that were requested.

    Raises:
        LabelError: vLLM gave another number of them.
    """
    parts = [part for output in outputs for part in (output.prompt_logprobs, output.outputs[0].logprobs)]
    lengths = [len(output.prompt_token_ids) for output in outputs]
    ids, logp = (
        _columns([getattr(part, name) for part in parts], kind)
        for name, kind in (("token_ids", np.int32), ("logprobs", np.float32))
    )
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if len(ids) != int(offsets[-1]) * (k + 1):
        raise LabelError(
            f"vLLM gave {len(ids)} log-probabilities at {offsets[-1]} tokens, expected {k + 1} at each "
            "(the token itself and the likeliest): this release of vLLM is not known, use the one in "
            "cluster/vllm-requirements.txt"
        )
    return Flat(row_offsets=offsets, ids_NK=ids.reshape(-1, k + 1)[:, 1:], logp_NK=logp.reshape(-1, k + 1)[:, 1:])


def _columns(lists: Sequence[Sequence[float]], kind: npt.DTypeLike) -> npt.NDArray[Any]:
    """Concatenate lists of Python numbers into one array."""
    return np.concatenate([np.zeros(0, kind), *(np.array(values, kind) for values in lists)])


def reduce_flat(
    found: Flat,
    at_P: npt.NDArray[np.int64],
    *,
    row_offsets: npt.NDArray[np.int64],
    position: npt.NDArray[np.int32],
    vocabulary: int,
) -> Distributions:
    """Return the stored form at some tokens: entries by id, tail by difference, no entropy.

    Args:
        found: at all tokens.
        at_P: which of them.
        row_offsets: ``[R+1]``: positions of each row.
        position: ``[P]``: where in its row.
        vocabulary: number of classes V.
    """
    ids_PK, logp_PK = found.ids_NK[at_P], found.logp_NK[at_P]
    order_PK = np.argsort(ids_PK, axis=1)
    positions, k = ids_PK.shape
    return Distributions(
        classes=vocabulary,
        temperatures=(1.0,),
        row_offsets=row_offsets,
        position=position.astype(np.int32),
        entry_offsets=np.arange(positions + 1, dtype=np.int64) * k,
        ids=np.take_along_axis(ids_PK, order_PK, 1).reshape(-1),
        entropy=np.full(positions, np.nan, np.float32),
        logp=np.take_along_axis(logp_PK, order_PK, 1).reshape(-1),
        log_tail=log_tail(logp_PK, vocabulary)[:, None],
    )


def log_tail(logp_PK: npt.NDArray[np.float32], vocabulary: int) -> npt.NDArray[np.float32]:
    """Return ``[P]``: log of the mass outside the k likeliest, by difference, summed in float64.

    At least `LEAST_TAIL`, also where the head sums to 1 or more: a smaller tail cannot be distinguished from 0. At most
    what the classes outside can have, each of them no likelier than the least likely one inside; so a head that falls
    off steeply has the small tail that it must have. -inf where no class is outside.
    """
    p_PK = np.exp(logp_PK.astype(np.float64))
    others = vocabulary - p_PK.shape[1]
    least_P = p_PK.min(axis=1, initial=np.inf)
    with np.errstate(divide="ignore"):
        tail_P = np.log(np.minimum(np.maximum(1 - p_PK.sum(axis=1), LEAST_TAIL), others * least_P))
    return np.asarray(tail_P, np.float32)
