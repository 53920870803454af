"""Labelling of language models: an answered position a token that is to be predicted."""

import numpy as np
import pyarrow as pa

from ray_distill.tasks.encoded import Encoded, Ragged
from ray_distill.tasks.inputs.chat import ANSWERED, answers
from ray_distill.tasks.inputs.pair import DECODER, TARGET


def positions(encoded: Encoded) -> Ragged:
    """Return the places (int32, ascending) among each row's tokens at which the model answers.

    A decoder-only model answers at every token that precedes one to be predicted; a decoder beside an encoder at each
    of its tokens, the first of which is its start token.
    """
    if TARGET not in encoded.features:
        return answers(encoded.features[ANSWERED])
    offsets = encoded.features[DECODER].offsets
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    return Ragged(values=within.astype(np.int32), offsets=offsets)


def truth(encoded: Encoded, rows: pa.Table | None = None) -> Ragged:
    """Return the true token at each of `positions`, in their order."""
    if TARGET in encoded.features:
        return encoded.features[TARGET]
    answered, tokens = positions(encoded), encoded.features["input_ids"]
    at = np.repeat(tokens.offsets[:-1], np.diff(answered.offsets)) + answered.values
    return Ragged(values=tokens.values[at + 1], offsets=answered.offsets)
