"""Describe how two label stores differ, by the fields of a campaign's configuration.

Fingerprints and stored forms decide whether two stores are equal, but mean nothing to a reader: where these differ, the
field that decides them is named without its value.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

#: Field of the configuration by the beginning of a name in the manifest; the first that fits counts.
_FIELDS = {
    r"teacher\.engine": "labels.teacher.engine",
    r"teacher\.dtype": "labels.teacher.dtype",
    r"teacher": "labels.teacher",
    r"parts\.distributions\.space\.names": "snapshot.classes",
    r"parts\.distributions\.space": "labels.teacher",
    r"parts\.distributions\.(estimator|k|draws|exponent|temperatures)": r"labels.signal.\1",
    r"parts\.distributions\.seed": "seed",
    r"parts\.distributions\.family": "task",
    r"parts\.distributions": "labels.signal.encoding",
    r"parts\.hidden\.-?\d+\.(pool|dtype|rank|variance)": r"labels.hidden.\1",
    r"parts": "labels.hidden.layers",
    r"(unit_rows|unit_bytes)": r"labels.\1",
    r"batch": "labels.resources.batch",
    r"threads": "labels.resources.cpus",
}
#: Fields that stand for what their values cannot show.
_UNSHOWN = ("labels.teacher", "labels.signal.encoding", "labels.hidden.layers")


def different_settings(found: Mapping[str, Any], requested: Mapping[str, Any]) -> list[str]:
    """Return a phrase for each field of the configuration in which two manifests differ.

    Args:
        found: identity of the store that exists; see `StoreManifest.identity`.
        requested: identity of the store that this run would make.
    """
    phrases: dict[str, str] = {}
    for name, one, other in _differences(found, requested):
        field = _field(name)
        if field == "labels.hidden.layers":
            one, other = _layers(found), _layers(requested)
        elif field in _UNSHOWN:
            phrases.setdefault(field, f"{field} (the store has labels of another one, or of other content)")
            continue
        phrases.setdefault(field, f"{field}: the store has {_short(one)}, this run requests {_short(other)}")
    return list(phrases.values())


def _field(name: str) -> str:
    """Return the field that decides a name of the manifest; the name itself where none does."""
    for pattern, field in _FIELDS.items():
        if match := re.match(rf"{pattern}(?![a-z_])", name):
            return match.expand(field)
    return name


def _layers(identity: Mapping[str, Any]) -> list[int]:
    return sorted(spec["layer"] for spec in identity["parts"].values() if "layer" in spec)


def _differences(found: Any, expected: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each field in which two identities differ, and both values; None for an absent one."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for key in sorted({*found, *expected}):
            yield from _differences(found.get(key), expected.get(key), f"{name}.{key}" if name else key)
    elif found != expected:
        yield name, found, expected


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
