"""Stored forms of distributions, by name and version.

A new codec is one file and one line here.
"""

from ray_distill.config import SignalConfig
from ray_distill.errors import LabelError
from ray_distill.labels.format.codecs.base import Codec
from ray_distill.labels.format.codecs.compact import CompactCodec
from ray_distill.labels.format.codecs.dense import DenseCodec
from ray_distill.labels.format.codecs.topk import TopKCodec

#: Every codec that this release reads. From 0.2 on entries are never removed or changed: stores outlive releases.
CODECS: dict[tuple[str, int], Codec] = {
    ("dense", 2): DenseCodec(),
    ("topk", 2): TopKCodec(),
    ("compact", 2): CompactCodec(),
}


def choose_codec(signal: SignalConfig) -> tuple[str, int]:
    """Return the first codec of the table that stores what is configured."""
    return next(key for key, codec in CODECS.items() if codec.serves(signal))


def find_codec(key: tuple[str, int]) -> Codec:
    """Return the codec that a manifest names.

    Raises:
        LabelError: this release has no such codec.
    """
    if key not in CODECS:
        known = ", ".join(f"{name}/{version}" for name, version in CODECS)
        raise LabelError(
            f"the store uses codec {key[0]}/{key[1]}, this release reads {known}: upgrade ray-distill, or label again "
            "where the store is older than 0.2"
        )
    return CODECS[key]


__all__ = ["CODECS", "Codec", "choose_codec", "find_codec"]
