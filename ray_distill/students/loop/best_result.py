"""Store the best result of a run, so that a finished run is never trained again."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from safetensors.torch import load, save
from torch import Tensor

from ray_distill.artifacts import Document
from ray_distill.errors import DamagedFile, DistillError, TrainingError
from ray_distill.fingerprint import sha256
from ray_distill.storage import files
from ray_distill.storage.sealed import read_sealed, write_sealed
from ray_distill.students.checkpoints.store import check_plan
from ray_distill.students.loop.pace import Progress
from ray_distill.students.loop.validation import Score
from ray_distill.students.order.cursor import Cursor
from ray_distill.students.process_group import Ranks

log = logging.getLogger(__name__)

WEIGHTS_FILE = "best.safetensors"
_MARKER = "outcome.json"


class BestRecord(Document):
    """The best result so far, without its weights."""

    score: Score
    step: int
    level: float
    """The loss by which it is compared with others; see `Pace.level`."""


class Ended(Document):
    """How long a finished run was."""

    steps: int
    decay_from: int
    """The step from which its learning rate fell to 0; ``steps`` where it did not."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best result so far; ``weights`` are the student's, on the first rank only."""

    score: Score
    step: int
    level: float
    weights: dict[str, Tensor] = field(default_factory=dict)
    ended: Ended | None = None
    """None = the run goes on."""

    @property
    def record(self) -> BestRecord:
        """Everything except the weights."""
        return BestRecord(score=self.score, step=self.step, level=self.level)

    @classmethod
    def of(cls, record: BestRecord, weights: dict[str, Tensor], ended: Ended | None = None) -> Self:
        """Return the result of a record and its weights."""
        return cls(score=record.score, step=record.step, level=record.level, weights=weights, ended=ended)


class SavedState(Document):
    """The state of the loop in a checkpoint's marker."""

    refusal: ClassVar[type[DistillError]] = TrainingError

    cursor: Cursor
    best: BestRecord | None
    validation: Score | None
    """Result of the last validation."""
    progress: Progress


class OutcomeMarker(Document):
    """The content of ``outcome.json``."""

    refusal: ClassVar[type[DistillError]] = TrainingError

    best: BestRecord
    ended: Ended
    digest: str
    """Digest of the file with the weights."""
    plan: dict[str, Any]


def save_outcome(url: str, best: Best, plan: Mapping[str, Any], ranks: Ranks) -> None:
    """Write a finished run's best result: the weights, then the marker with their digest."""
    assert best.ended is not None
    if ranks.first:
        data = weights_bytes(best.weights)
        files.write_bytes(files.join(url, WEIGHTS_FILE), data)
        marker = OutcomeMarker(best=best.record, ended=best.ended, digest=sha256(data), plan=dict(plan))
        write_sealed(files.join(url, _MARKER), marker.to_dict())
    ranks.barrier()


def load_outcome(url: str, plan: Mapping[str, Any], ranks: Ranks) -> Best | None:
    """Return a finished run's best result; None = it is not finished.

    Only the first rank gets the weights.

    Raises:
        TrainingError: the result was made under another plan.
    """
    found = _read_outcome(url) if ranks.first else None
    marker: OutcomeMarker | None = ranks.share(None if found is None else found[0])
    if marker is None:
        return None
    check_plan(marker.plan, plan, f"the finished run {url}", folder=url)
    return Best.of(marker.best, {} if found is None else found[1], marker.ended)


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


def _read_outcome(url: str) -> tuple[OutcomeMarker, dict[str, Tensor]] | None:
    marker_url = files.join(url, _MARKER)
    if not files.exists(marker_url):
        return None
    try:
        marker = OutcomeMarker.from_dict(read_sealed(marker_url, "the run is trained again"), marker_url)
        weights_url = files.join(url, WEIGHTS_FILE)
        data = files.read_bytes(weights_url) if files.exists(weights_url) else b""
        if sha256(data) != marker.digest:
            raise TrainingError(f"{url}: {WEIGHTS_FILE} is damaged: its digest is not {marker.digest}")
        return marker, read_weights(data)
    except (TrainingError, DamagedFile) as error:
        log.warning("the finished run %s cannot be used and is trained again: %s", url, error)
        return None
