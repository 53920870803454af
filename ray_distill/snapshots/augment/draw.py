"""Draw kind, chances and partner of a view from the seed, its row's id and its number alone.

So a view depends on no other row, except that a mix depends on its partner.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

#: Rows among which a mix finds its partner: those that follow in the order of ids, cyclically. Ids are hashes of the
#: inputs, so that these are random rows; and a row that is added replaces about two partners a mixed view of a row.
PARTNERS = 16

_KIND, _CHANCES, _PARTNER = b"view.kind", b"view.chances", b"view.partner"


def kind_at(seed: int, row_id: bytes, number: int, *, kinds: int) -> int:
    """Return the index of the kind of a row's view; the views of a row take turns in the kinds."""
    return (_hash(_KIND, seed, row_id) + number) % kinds


def chances(seed: int, row_id: bytes, number: int) -> np.random.Generator:
    """Return the generator from which a view is drawn."""
    return np.random.Generator(np.random.Philox(key=_hash(_CHANCES, seed, row_id, number.to_bytes(4, "little"))))


def partner(seed: int, row_id: bytes, number: int, candidates: Sequence[bytes]) -> int:
    """Return the index of the row that a view is mixed with.

    It is the candidate of the greatest hash (rendezvous hashing), so that other candidates can come and go.

    Args:
        seed: of the campaign.
        row_id: the view's parent.
        number: number of the view.
        candidates: ids of other rows, at least one.
    """
    view = number.to_bytes(4, "little")
    return max(range(len(candidates)), key=lambda at: _hash(_PARTNER, seed, row_id, view + candidates[at]))


def _hash(purpose: bytes, seed: int, row_id: bytes, more: bytes = b"") -> int:
    """Return 128 bits."""
    salt = (seed % 2**64).to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(row_id + more, digest_size=16, person=purpose, salt=salt).digest(), "little")
