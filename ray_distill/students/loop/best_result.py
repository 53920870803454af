"""Store the best result of a trial, so that a finished trial is never trained again."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from safetensors.torch import load, save
from torch import Tensor

from ray_distill.errors import TrainingError
from ray_distill.fingerprint import sha256
from ray_distill.storage import files
from ray_distill.students.checkpoints.store import check_plan
from ray_distill.students.loop.validation import Score
from ray_distill.students.process_group import Ranks

log = logging.getLogger(__name__)

WEIGHTS_FILE = "best.safetensors"
_MARKER = "outcome.json"


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best result so far; ``weights`` are the student's, on the first rank only."""

    score: Score
    step: int
    weights: dict[str, Tensor] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the weights, as plain JSON values."""
        return {"value": self.score.value, "metrics": self.score.metrics, "step": self.step}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], weights: dict[str, Tensor]) -> Self:
        """Rebuild from `to_dict` and the weights."""
        score = Score(value=float(value["value"]), metrics=dict(value["metrics"]))
        return cls(score=score, step=int(value["step"]), weights=weights)


def save_outcome(url: str, best: Best, plan: Mapping[str, Any], ranks: Ranks) -> None:
    """Write a finished trial's best result: the weights, then the marker with their digest."""
    if ranks.first:
        data = weights_bytes(best.weights)
        files.write_bytes(files.join(url, WEIGHTS_FILE), data)
        marker = {"best": best.to_dict(), "digest": sha256(data), "plan": plan}
        files.write_bytes(files.join(url, _MARKER), json.dumps(marker, indent=1).encode())
    ranks.barrier()


def load_outcome(url: str, plan: Mapping[str, Any], ranks: Ranks) -> Best | None:
    """Return a finished trial's best result; None = it is not finished.

    Only the first rank gets the weights.

    Raises:
        TrainingError: the result was made under another plan.
    """
    found = _read_outcome(url) if ranks.first else None
    shared = ranks.share(None if found is None else (found[0].to_dict(), found[1]))
    if shared is None:
        return None
    value, saved_plan = shared
    check_plan(saved_plan, plan, f"the finished trial {url}")
    return Best.from_dict(value, found[0].weights if found is not None else {})


def weights_bytes(weights: Mapping[str, Tensor]) -> bytes:
    """Return weights as safetensors.

    Tensors that share memory (tied weights) are written separately.
    """
    data: bytes = save({name: value.contiguous().clone() for name, value in weights.items()})
    return data


def read_weights(data: bytes) -> dict[str, Tensor]:
    """Read back `weights_bytes`."""
    weights: dict[str, Tensor] = load(data)
    return weights


def _read_outcome(url: str) -> tuple[Best, dict[str, Any]] | None:
    marker_url = files.join(url, _MARKER)
    if not files.exists(marker_url):
        return None
    try:
        marker = json.loads(files.read_bytes(marker_url))
        data = files.read_bytes(files.join(url, WEIGHTS_FILE))
        if sha256(data) != marker["digest"]:
            raise TrainingError(f"{url}: {WEIGHTS_FILE} is damaged: its digest is not {marker['digest']}")
        return Best.from_dict(marker["best"], read_weights(data)), marker["plan"]
    except (TrainingError, ValueError, KeyError, TypeError) as error:
        log.warning("the finished trial %s cannot be used and is trained again: %s", url, error)
        return None
