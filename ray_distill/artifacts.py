"""The immutable references that stages hand over, and the reports they point at.

Each reference is a few strings: a URL and a fingerprint. A command prints its reference as JSON and the
next command accepts it; nothing else passes between stages.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import StrEnum
from types import UnionType
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

from ray_distill.errors import ConfigError


class Artifact:
    """JSON in and out for the dataclasses below; ``kind`` names the class inside the JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Return this artifact as plain JSON values, ``kind`` first."""
        return {"kind": type(self).__name__, **_plain(asdict(self))}  # type: ignore[call-overload]

    def to_json(self) -> str:
        """Return this artifact as one line of strict JSON; NaN and infinities become null."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Rebuild an artifact.

        Raises:
            ConfigError: the JSON is another kind, or fields are missing or unknown.
        """
        value = dict(value)
        kind = value.pop("kind", cls.__name__)
        if kind != cls.__name__:
            raise ConfigError(f"expected a {cls.__name__}, found a {kind}: pass the reference of the right stage")
        result: Self = _build(cls, value)
        return result

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Rebuild an artifact from its JSON text; errors as `from_dict`."""
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"a {cls.__name__} must be JSON: {error}") from error
        if not isinstance(value, dict):
            raise ConfigError(f"a {cls.__name__} must be a JSON object, found {type(value).__name__}")
        return cls.from_dict(value)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _build(kind: Any, value: Any) -> Any:
    """Rebuild one annotated value: dataclasses, tuples, dicts and optional ones of them."""
    origin = get_origin(kind)
    if origin in (UnionType, Union):
        if value is None:
            return math.nan if kind == (float | None) and type(None) not in get_args(kind) else None
        return _build(next(arg for arg in get_args(kind) if arg is not type(None)), value)
    if origin is tuple:
        return tuple(_build(get_args(kind)[0], item) for item in value)
    if origin is dict:
        return {key: _build(get_args(kind)[1], item) for key, item in value.items()}
    if kind is float:
        return math.nan if value is None else float(value)
    if isinstance(kind, type) and is_dataclass(kind):
        return _build_dataclass(kind, value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(value)
    return value


def _build_dataclass(kind: type[Any], value: dict[str, Any]) -> Any:
    value = {key: item for key, item in value.items() if key != "kind"}
    hints = get_type_hints(kind)
    unknown = sorted(set(value) - {item.name for item in fields(kind)})
    if unknown:
        raise ConfigError(f"{kind.__name__} has no field {', '.join(unknown)}: it was written by another version")
    try:
        return kind(**{key: _build(hints[key], item) for key, item in value.items()})
    except TypeError as error:
        raise ConfigError(f"{kind.__name__} is incomplete: {error}") from error


@dataclass(frozen=True, kw_only=True)
class SnapshotRef(Artifact):
    """A frozen snapshot: its folder and the fingerprint of its manifest."""

    url: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class LabelSetRef(Artifact):
    """Labels of one snapshot: the first ``log_length`` records of a store's log, pinned by their digest.

    ``fingerprint`` covers the store's manifest, the log prefix and the snapshot, so two label sets with the
    same fingerprint hold the same labels.
    """

    store: str
    fingerprint: str
    snapshot: SnapshotRef
    log_length: int
    log_digest: str


@dataclass(frozen=True, kw_only=True)
class StudentRef(Artifact):
    """A trained model as a standard transformers directory.

    ``arm`` says which of the campaign's models this is: ``student``, or a baseline trained beside it.
    """

    url: str
    fingerprint: str
    arm: str
    labels: LabelSetRef


@dataclass(frozen=True, kw_only=True)
class Estimate(Artifact):
    """A measured quantity with its 95 % interval and the number of examples behind it.

    ``low`` and ``high`` are NaN where no interval was computed; a NaN ``value`` means "could not be measured".
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0

    @property
    def width(self) -> float:
        """Width of the 95 % interval."""
        return self.high - self.low


@dataclass(frozen=True, kw_only=True)
class Efficiency(Artifact):
    """What a model costs to hold and to run, all models measured alike on one machine.

    Latencies are of single requests, in milliseconds; throughput is of batches, in examples a second.
    """

    parameters: int
    bytes_on_disk: int
    latency_ms_p50: float
    latency_ms_p95: float
    examples_per_second: float


@dataclass(frozen=True, kw_only=True)
class ModelReport(Artifact):
    """Everything measured of one model on the test split.

    ``metrics`` are keyed by name (``accuracy``, ``macro_f1``, ``nll``, ``ece``, ``agreement``,
    ``kl_from_teacher``); ``robustness`` by corruption, then severity (as text), then metric; ``slices`` by
    ``column=value``, then metric.
    """

    name: str
    url: str
    metrics: dict[str, Estimate]
    efficiency: Efficiency
    robustness: dict[str, dict[str, dict[str, Estimate]]] = field(default_factory=dict)
    slices: dict[str, dict[str, Estimate]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvalReport(Artifact):
    """The judgement of one student: the student, its teacher, its baselines and the champion, side by side.

    ``models`` is keyed by arm: ``teacher``, ``student``, ``baseline_hard_labels``,
    ``baseline_teacher_hard_labels``, ``ceiling_true_labels``, ``champion``. ``comparisons`` holds paired
    differences, student minus the other model, keyed ``<metric>_minus_<arm>``. ``notes`` are findings in
    plain words that a reviewer must see.
    """

    url: str
    fingerprint: str
    student: StudentRef
    models: dict[str, ModelReport]
    comparisons: dict[str, Estimate] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Verdict(StrEnum):
    """What becomes of a student."""

    PROMOTE = "PROMOTE"
    HOLD = "HOLD"
    REJECT = "REJECT"


@dataclass(frozen=True, kw_only=True)
class Decision(Artifact):
    """A verdict and why: one sentence a reason, each naming the metric, its value and the limit."""

    verdict: Verdict
    reasons: tuple[str, ...]
    student: StudentRef
    report_fingerprint: str
    gate_fingerprint: str = ""
    """Of the limits it was judged by: other limits make another decision."""
