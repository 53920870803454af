"""Labelling of language models: an answered position a token that is to be predicted."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.ragged import RaggedArray, owner
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.inputs.chat import ANSWERED, answers
from ray_distill.tasks.inputs.pair import DECODER, TARGET

#: Tokens by which answers are compared: those with most mass; all others count as one.
TOKENS = 255
Tokens = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def positions(encoded: Encoded) -> RaggedArray:
    """Return the places (int32, ascending) among each row's tokens at which the model answers.

    A decoder-only model answers at every token that precedes one to be predicted; a decoder beside an encoder at each
    of its tokens, the first of which is its start token.
    """
    if TARGET not in encoded.features:
        return answers(encoded.features[ANSWERED])
    offsets = encoded.features[DECODER].offsets
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    return RaggedArray(values=within.astype(np.int32), offsets=offsets)


def truth(encoded: Encoded, rows: pa.Table | None = None) -> RaggedArray:
    """Return the true token at each of `positions`, in their order."""
    if TARGET in encoded.features:
        return encoded.features[TARGET]
    answered, tokens = positions(encoded), encoded.features["input_ids"]
    at = np.repeat(tokens.offsets[:-1], np.diff(answered.offsets)) + answered.values
    return RaggedArray(values=tokens.values[at + 1], offsets=answered.offsets)


def shares(distributions: Distributions, classes: Tokens | None) -> tuple[Floats, Tokens]:
    """Return the probabilities of the commonest tokens by document; see `StoreFacet`."""
    tokens = commonest_tokens(distributions) if classes is None else classes
    return token_probabilities(distributions, tokens), tokens


def commonest_tokens(distributions: Distributions) -> Tokens:
    """Return the tokens to which a teacher gave most mass, at most `TOKENS`, ascending."""
    mass_V = np.bincount(distributions.ids, np.exp(distributions.logp.astype(np.float64)), distributions.classes)
    return np.sort(np.argsort(-mass_V, kind="stable")[:TOKENS]).astype(np.int64)


def token_probabilities(distributions: Distributions, tokens: Tokens) -> Floats:
    """Return the mean mass of each token, and of the rest, by document.

    The shape is ``[R, len(tokens) + 1]``; the last column is the mass of all other tokens. Only the stored mass counts,
    on both sides of a comparison, so that truncation affects both sides equally.
    """
    rows, last = len(distributions.row_offsets) - 1, len(tokens)
    column_V = np.full(distributions.classes, last, np.int64)
    column_V[tokens] = np.arange(last)
    row_E = owner(distributions.row_offsets)[owner(distributions.entry_offsets)]
    cell_E = row_E * (last + 1) + column_V[distributions.ids]
    mass = np.bincount(cell_E, np.exp(distributions.logp.astype(np.float64)), rows * (last + 1)).reshape(rows, last + 1)
    positions_R1 = np.maximum(np.diff(distributions.row_offsets), 1)[:, None]
    mean_RT = mass / positions_R1
    mean_RT[:, last] = np.maximum(1.0 - mean_RT[:, :last].sum(1), 0.0)  # float32 sums to a little more than 1
    return mean_RT
