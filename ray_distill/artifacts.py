"""The immutable references that stages hand over, and the reports they point at.

Each reference is a few strings: a URL and a fingerprint. A command prints its reference as JSON and the
next command accepts it; nothing else passes between stages.
"""

import json
import math
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from ray_distill.errors import ConfigError, DistillError
from ray_distill.redact import has_credentials, redact

#: A measured number: NaN means "could not be measured" and is null in JSON, as infinities are.
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


def _without_credentials(url: str) -> str:
    """Return a URL that may be written into results, reports and state files."""
    if has_credentials(url):
        raise ValueError(
            "a reference must not have a password, a key or a signature, because every result names it: leave it out, "
            "and give credentials as the client of the file system reads them"
        )
    return url


#: A place that references name.
Place = Annotated[str, AfterValidator(_without_credentials)]


class Document(BaseModel):
    """A frozen model of what is written and read as JSON; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null", protected_namespaces=())

    refusal: ClassVar[type[DistillError]] = ConfigError
    """Error of `from_dict` for values that do not fit."""

    def to_dict(self) -> dict[str, Any]:
        """Return this document as plain JSON values; NaN and infinities become null."""
        found: dict[str, Any] = json.loads(self.model_dump_json())
        return found

    def to_json(self) -> str:
        """Return this document as one line of strict JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_dict(cls, value: Any, where: str = "") -> Self:
        """Rebuild a document from `to_dict`'s form.

        Args:
            value: JSON values.
            where: URL or place that the error names.

        Raises:
            DistillError: `refusal`: fields are missing, unknown or of the wrong kind; it names each.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise cls.refusal(f"{where + ': ' if where else ''}{cls.__name__} {problems(error)}") from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Rebuild a document from its JSON text; errors as `from_dict`."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise cls.refusal(f"a {cls.__name__} must be JSON: {error}") from error
        return cls.from_dict(value)

    def with_changes(self, **changes: Any) -> Self:
        """Return a validated copy with other values of some fields."""
        return type(self)(**{**dict(self), **changes})


def problems(error: ValidationError) -> str:
    """Describe every field that a model refused, in one line."""
    return "; ".join(_problem(item["type"], item["loc"], item["msg"], item["input"]) for item in error.errors())


def _problem(kind: str, location: tuple[int | str, ...], message: str, found: Any) -> str:
    name = ".".join(map(str, location))
    if kind == "missing":
        return f"lacks the field {name}"
    if kind == "extra_forbidden":
        return f"has no field {name}: it was written by another version"
    where = f"field {name}: {message}" if name else message
    return f"has a value of the wrong kind: {where[0].lower()}{where[1:]}, found {redact(str(found))[:80]!r}"


class Artifact(Document):
    """A document whose JSON names its class as ``kind``."""

    def to_dict(self) -> dict[str, Any]:
        """Return this artifact as plain JSON values, ``kind`` first."""
        return {"kind": type(self).__name__, **super().to_dict()}

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any) -> Any:
        """Take ``kind`` out of JSON.

        Raises:
            ConfigError: the JSON is of another kind.
        """
        if not isinstance(value, dict) or "kind" not in value:
            return value
        if value["kind"] != cls.__name__:
            raise cls.refusal(
                f"expected a {cls.__name__}, found a {value['kind']}: pass the reference of the right stage"
            )
        return {name: item for name, item in value.items() if name != "kind"}


class SnapshotRef(Artifact):
    """A frozen snapshot."""

    url: Place
    """Folder of the snapshot."""
    fingerprint: str
    """Of its manifest: equal for equal content, wherever it lies."""


class LabelSetRef(Artifact):
    """Labels of a snapshot: the first ``log_length`` records of a log, pinned by digest."""

    store: Place
    """Folder of the label store."""
    fingerprint: str
    """Covers the store's manifest, the snapshot and the units that labelled it: equal for equal labels, whatever else
    the store has."""
    snapshot: SnapshotRef
    log_length: int
    """Records of the log that count; later ones are not read."""
    log_digest: str
    """``sha256:…`` of these records; labels are refused where the log has another."""


class StudentRef(Artifact):
    """A trained model as a standard transformers directory."""

    url: Place
    """The directory."""
    fingerprint: str
    """Of the weights and of what they were made from."""
    arm: str
    """Which of the campaign's models this is: ``student``, or a baseline trained beside it."""
    labels: LabelSetRef
    """Labels it was trained from."""


class Calibration(Document):
    """The temperature of an arm, and what it changes on the calibration split."""

    temperature: float
    """Divisor of the logits; 1 = they are as they were trained."""
    where: Literal["", "head", "decision"] = ""
    """Where it is: in the weights of the last layer; in the metadata; nowhere, because it is 1."""
    against: Literal["", "true labels", "teacher"] = ""
    """What the probabilities were compared with."""
    rows: int = 0
    """Rows that it was fitted on."""
    nll_before: Number = math.nan
    """Mean NLL in nats; against the teacher, cross-entropy with its distributions."""
    nll_after: Number = math.nan
    ece_before: Number = math.nan
    """Calibration error, in as many bins as the evaluation has by default."""
    ece_after: Number = math.nan
    reason: str = ""
    """Why the temperature is 1, or that it is a bound of the search; empty for others."""

    @property
    def in_words(self) -> str:
        """Return the result as a phrase, without a full stop."""
        if not self.rows:
            return f"temperature 1: {self.reason}"
        where = f"on {self.rows:,} rows of the calibration split, against {self.shown_against}"
        figures = f"ECE {self.ece_before:.4f}, NLL {self.nll_before:.4f}"
        if self.temperature != 1:
            figures += f" before; ECE {self.ece_after:.4f}, NLL {self.nll_after:.4f} after"
        return f"temperature {self.temperature:g} {where}: {figures}{f' ({self.reason})' if self.reason else ''}"

    @property
    def shown_against(self) -> str:
        """Return what the probabilities were compared with, as a noun."""
        return "the teacher" if self.against == "teacher" else self.against


class Estimate(Artifact):
    """A measured quantity with its 95 % interval."""

    value: Number
    """NaN where it could not be measured."""
    low: Number = math.nan
    """Lower end of the 95 % interval; NaN where none was computed."""
    high: Number = math.nan
    """Upper end of the 95 % interval; NaN where none was computed."""
    n: int = 0
    """Examples behind it."""

    @property
    def width(self) -> float:
        """Width of the 95 % interval."""
        return self.high - self.low


class Efficiency(Artifact):
    """Size and speed of a model; all models are measured alike on one machine."""

    parameters: int
    bytes_on_disk: int
    latency_ms_p50: Number
    """Median of single requests, milliseconds."""
    latency_ms_p95: Number
    """95th percentile of single requests, milliseconds."""
    examples_per_second: Number
    """Throughput of batches."""
    latency_spread: Number = math.nan
    """Distance between the quartiles of the single requests, as a share of their median."""


class ModelReport(Artifact):
    """Everything measured of one model on the test split."""

    name: str
    url: str
    metrics: dict[str, Estimate]
    """By name in the metric tables of the report's task."""
    efficiency: Efficiency
    robustness: dict[str, dict[str, dict[str, Estimate]]] = {}
    """By corruption, then severity (as text), then metric."""
    slices: dict[str, dict[str, Estimate]] = {}
    """By ``column=value``, then metric."""

    def figure(self, name: str) -> Estimate | None:
        """Return a metric or an efficiency figure by name; efficiency figures count as exact."""
        if name in self.metrics:
            return self.metrics[name]
        if name not in Efficiency.model_fields:
            return None
        value = float(getattr(self.efficiency, name))
        return Estimate(value=value, low=value, high=value, n=1)


class EvalReport(Artifact):
    """Evaluation of one student beside its teacher, its baselines and the champion."""

    url: str
    """URL of the report's JSON."""
    fingerprint: str
    """Of everything measured."""
    task: str
    """Whose metric tables all numbers are read by."""
    student: StudentRef
    models: dict[str, ModelReport]
    """By arm: ``teacher``, ``student``, ``baseline_hard_labels``, ``baseline_teacher_hard_labels``,
    ``ceiling_true_labels``, ``champion``."""
    comparisons: dict[str, Estimate] = {}
    """Paired differences, student minus the other model, keyed ``<metric>_minus_<arm>``."""
    champion_minus_teacher: dict[str, Estimate] = {}
    """Paired differences, champion minus teacher, by metric; empty without a champion."""
    notes: tuple[str, ...] = ()
    """Findings in plain words that a reviewer must see."""
    files: dict[str, str] = {}
    """Digests, ``sha256:…``, of the predictions and texts that are stored beside the report."""

    @property
    def output(self) -> str:
        """URL of the campaign's output, in which it is ``evaluations/<key>/report.json``."""
        return self.url.rsplit("/", 3)[0]


class Verdict(StrEnum):
    """Decision on a student."""

    PROMOTE = "PROMOTE"
    HOLD = "HOLD"
    REJECT = "REJECT"


class Decision(Artifact):
    """A verdict and why."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """One sentence a reason, each naming the metric, its value and the limit."""
    student: StudentRef
    report_fingerprint: str
    """Of the report it was judged by."""
    gate_fingerprint: str = ""
    """Of the limits it was judged by: other limits make another decision."""
