"""Stored forms of distributions, by name and version.

A new codec is one file and one line here.
"""

from ray_distill.config import SignalConfig
from ray_distill.errors import ConfigError, LabelError
from ray_distill.labels.format.codecs.base import Codec
from ray_distill.labels.format.codecs.compact import CompactCodec
from ray_distill.labels.format.codecs.dense import DenseCodec
from ray_distill.labels.format.codecs.topk import TopKCodec
from ray_distill.labels.model.distributions import Family

#: Every codec that this release reads. From 0.2 on entries are never removed or changed: stores outlive releases.
CODECS: dict[tuple[str, int], Codec] = {
    ("dense", 2): DenseCodec(),
    ("topk", 2): TopKCodec(),
    ("compact", 2): CompactCodec(),
}


def choose_codec(signal: SignalConfig, family: Family) -> tuple[str, int]:
    """Return the first codec of the table that stores what is configured, of such distributions.

    Raises:
        ConfigError: there is none.
    """
    own = {key: codec for key, codec in CODECS.items() if family in codec.families}
    found = next((key for key, codec in own.items() if codec.serves(signal)), None)
    if found is None:
        raise ConfigError(
            f"labels.signal: no codec stores the estimator {signal.estimator} of {family} distributions in the "
            f"encoding {signal.encoding!r}; the encodings are {', '.join(encodings(family))}"
        )
    return found


def encodings(family: Family) -> tuple[str, ...]:
    """Return the encodings that can store such distributions, by their names in a configuration."""
    own = [codec for codec in CODECS.values() if family in codec.families]
    return tuple(dict.fromkeys(name for codec in own for name in codec.encodings))


def find_codec(key: tuple[str, int]) -> Codec:
    """Return the codec that a manifest names.

    Raises:
        LabelError: this release has no such codec.
    """
    if key not in CODECS:
        known = ", ".join(f"{name}/{version}" for name, version in CODECS)
        raise LabelError(
            f"the store uses codec {key[0]}/{key[1]}, this release reads {known}: upgrade ray-distill, or label again "
            "where the store is older than 0.2, into a new store (labels.store)"
        )
    return CODECS[key]


__all__ = ["CODECS", "Codec", "choose_codec", "encodings", "find_codec"]
