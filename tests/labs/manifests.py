"""Label stores' manifests with one value changed, as damage or another release would leave them."""

import copy
from typing import Any

from ray_distill.fingerprint import fingerprint
from ray_distill.labels.model.manifest import DESCRIPTIVE


def altered(value: dict[str, Any], place: str, item: Any) -> dict[str, Any]:
    """Return a manifest's JSON in which ``place`` (``unit_rows``, ``parts/distributions/k``) is ``item``."""
    found = copy.deepcopy(value)
    *outer, last = place.split("/")
    inner = found
    for name in outer:
        inner = inner[name]
    inner[last] = item
    return found


def own_fingerprint(value: dict[str, Any]) -> str:
    """Return the fingerprint that a manifest's JSON would state for itself."""
    teacher = {key: item for key, item in value["teacher"].items() if key not in DESCRIPTIVE}
    return fingerprint({key: item for key, item in value.items() if key != "measured"} | {"teacher": teacher})
