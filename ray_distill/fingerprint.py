"""Content fingerprints: the keys by which all work is found again.

Two things with the same fingerprint are interchangeable. Fingerprints are made of content alone, never of
a path, a rank or a time, so that a rerun on another machine finds the same work already done.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

#: Anything JSON can hold; the only values that may be fingerprinted.
Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]

FINGERPRINT_BYTES = 16


def canonical_json(value: Any) -> bytes:
    """Encode ``value`` so that equal values give equal bytes: sorted keys, no spaces, UTF-8.

    Raises:
        ValueError: NaN or infinity, which JSON cannot carry.
        TypeError: a value JSON has no form for.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def fingerprint(value: Any) -> str:
    """Fingerprint a JSON value: 32 hexadecimal digits (BLAKE2b, 128 bits) of its canonical form."""
    return fingerprint_bytes(canonical_json(value))


def fingerprint_bytes(data: bytes) -> str:
    """Fingerprint raw bytes: 32 hexadecimal digits (BLAKE2b, 128 bits)."""
    return hashlib.blake2b(data, digest_size=FINGERPRINT_BYTES).hexdigest()


def sha256(data: bytes) -> str:
    """Return the digest of bytes: ``sha256:`` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()
