"""One file a campaign, validated whole: the sections stand in the order in which the data flows.

Every default is one a careful practitioner would choose. What a store or a model already knows (class
names, layers, temperatures, tokenizer) is read from there and never asked for twice.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ray_distill.errors import ConfigError
from ray_distill.fingerprint import fingerprint

Dtype = Literal["float32", "bfloat16", "float16"]
Pool = Literal["token", "mean", "cls", "last"]


class Section(BaseModel):
    """A frozen section that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Columns(Section):
    """Which source column plays which part."""

    text: str = Field("text", description="the text to classify (text tasks)")
    image: str = Field("image", description="encoded image bytes, or {bytes, path} (image tasks)")
    label: str | None = Field(None, description="true label: class name or index into `classes`; null = unlabelled")
    group: str | None = Field(None, description="rows of one group (user, conversation) stay in one split")
    time: str | None = Field(None, description="event time, for splits by time")
    slices: tuple[str, ...] = Field((), description="columns by which evaluation is also reported")


class Splits(Section):
    """Shares of the four splits; they sum to 1. Deterministic: the same row always lands in the same split."""

    train: float = Field(0.85, gt=0, lt=1)
    validation: float = Field(0.05, gt=0, lt=1)
    calibration: float = Field(0.05, gt=0, lt=1)
    test: float = Field(0.05, gt=0, lt=1)
    by: Literal["id", "group", "time"] = Field("id", description="what decides a row's split")

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.train + self.validation + self.calibration + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the four shares must sum to 1, found {total:g}")
        return self


class SnapshotConfig(Section):
    """What is frozen, and how."""

    source: str | tuple[str, ...] = Field(description="file, folder or glob on any fsspec URL")
    format: Literal["auto", "parquet", "jsonl", "csv", "images"] = "auto"
    columns: Columns = Columns()
    classes: tuple[str, ...] | None = Field(None, description="class names in order; default: sorted labels found")
    splits: Splits = Splits()
    conflicts: Literal["majority", "first", "drop", "unlabel"] = Field(
        "majority", description="the same input with different labels: keep the commonest label (ties: the "
        "first by name), the first seen, drop the row, or keep it unlabelled")
    exclude: tuple[str, ...] = Field((), description="sources whose rows are left out: the teacher's training rows")
    max_bad_fraction: float = Field(0.01, ge=0, le=1, description="above this share of unusable rows, stop")
    shard_rows: int = Field(4096, ge=1, description="rows a snapshot shard")

    @model_validator(mode="after")
    def _split_column(self) -> Self:
        by = self.splits.by
        if by != "id" and getattr(self.columns, by) is None:
            raise ValueError(f"splits.by is {by!r} but columns.{by} is not set")
        return self


class HeadConfig(Section):
    """A linear classification head, fitted on labelled rows, for an encoder that has none."""

    pool: Literal["mean", "cls", "last"] = "mean"
    normalize: bool = Field(True, description="scale the pooled embedding to length 1 before the head")
    max_rows: int = Field(10_000, ge=1, description="labelled train rows used at most, the first by row id")


class TeacherConfig(Section):
    """The model whose answers are stored."""

    model: str = Field(description="checkpoint folder or URL, or module:function")
    revision: str | None = Field(None, description="sha256:… of the checkpoint's files; a mismatch is an error")
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of module:function")
    head: HeadConfig | None = Field(None, description="fit a head on labelled rows: for encoders without one")
    dtype: Dtype = "float32"
    device: str = Field("auto", description="auto = cuda where there is one, else cpu")
    max_length: int | None = Field(None, ge=1, description="tokens kept of a text; default: the model's own limit")
    trust_remote_code: bool = False


class SignalConfig(Section):
    """What is stored of the teacher's distribution."""

    estimator: Literal["dense", "topk"] = "dense"
    k: int = Field(64, ge=1, description="classes stored a position (topk)")
    temperatures: tuple[float, ...] = Field((1.0,), description="temperatures training may use (MATHS.md §3)")

    @field_validator("temperatures", mode="after")
    @classmethod
    def _with_one(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return value if 1.0 in value else (1.0, *value)

    @model_validator(mode="after")
    def _temperatures(self) -> Self:
        if any(t <= 0 for t in self.temperatures) or len(set(self.temperatures)) != len(self.temperatures):
            raise ValueError(f"temperatures must be positive and distinct, found {list(self.temperatures)}")
        return self


class HiddenConfig(Section):
    """Which hidden states are stored, and in which form."""

    layers: tuple[int, ...] = Field((), description="layer indices as in `hidden_states`; negative from the end")
    pool: Pool = "mean"
    dtype: Dtype = "bfloat16"


class CheckConfig(Section):
    """The teacher's floor on the calibration split; below it labelling does not start."""

    min_accuracy: float | None = Field(None, ge=0, le=1)
    max_ece: float | None = Field(None, ge=0, le=1)
    beat_majority: bool = Field(True, description="refuse a teacher no better than the majority class")


class Resources(Section):
    """What the labelling job may take."""

    actors: tuple[int, int] = Field((1, 1), description="least and most teacher actors: 1 <= least <= most")
    gpus: float = Field(0, ge=0, description="GPUs a teacher actor")
    cpus: float = Field(1, gt=0, description="CPUs a teacher actor; also its torch threads")
    batch: int = Field(64, ge=1, description="examples a teacher batch")

    @field_validator("actors")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError("needs 1 <= least <= most")
        return value


class LabelsConfig(Section):
    """The label store and how it is filled."""

    store: str | None = Field(None, description="URL of the label store; default: <output>/labels")
    teacher: TeacherConfig
    signal: SignalConfig = SignalConfig()
    hidden: HiddenConfig = HiddenConfig()
    check: CheckConfig = CheckConfig()
    resources: Resources = Resources()
    unit_rows: int = Field(512, ge=1, description="rows a work unit: what is redone after a crash")
    max_bad_fraction: float = Field(0.01, ge=0, le=1, description="above this share of unlabelled rows, stop")


class StudentModel(Section):
    """Where the student's weights come from."""

    source: Literal["config", "teacher_layers", "checkpoint", "module"] = Field("config", alias="from")
    model: str | None = Field(None, description="checkpoint folder or URL, or module:function")
    overrides: dict[str, Any] = Field(default_factory=dict, description="config: teacher's config fields to change")
    keep: int | None = Field(None, ge=1, description="teacher_layers: how many layers to copy, evenly spaced")
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of module:function")
    max_length: int | None = Field(None, ge=1, description="tokens kept of a text; default: the model's own limit")
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _needs(self) -> Self:
        if self.source in ("checkpoint", "module") and not self.model:
            raise ValueError(f"from: {self.source} needs `model`")
        if self.source == "teacher_layers" and self.keep is None:
            raise ValueError("from: teacher_layers needs `keep`")
        return self


class Schedule(Section):
    """A weight that changes over training: ``{cosine: [1.0, 0.1]}``."""

    constant: float | None = None
    linear: tuple[float, float] | None = None
    cosine: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(v is not None for v in (self.constant, self.linear, self.cosine)) != 1:
            raise ValueError("a schedule has exactly one of constant, linear, cosine")
        return self


class LossConfig(Section):
    """One term of the training loss."""

    weight: float | Schedule = 1.0
    temperature: float | None = Field(None, gt=0, description="soft: one of the store's declared temperatures")
    layers: Literal["uniform", "last"] | dict[int, int] = Field(
        "uniform", description="hidden: which student layer matches which stored teacher layer")
    kind: Literal["mse", "cosine"] = Field("cosine", description="hidden: the distance")


class TrainingConfig(Section):
    """How a student is trained; all baselines get the same budget and tuning."""

    epochs: float = Field(3, gt=0, description="passes over the training rows; fixes the steps of every arm")
    global_batch: int = Field(256, ge=1, description="examples an optimiser step, over all workers")
    micro_batch: int = Field(64, ge=1, description="examples a forward pass, on one worker")
    learning_rate: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        (3e-4,), min_length=1, description="one, or several: each arm keeps its best on validation")
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the rate rises")
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    workers: int = Field(1, ge=1)
    gpus: float = Field(0, ge=0, description="GPUs a worker")
    cpus: float = Field(1, gt=0, description="CPUs a worker; also its torch threads")
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    offload: Literal["none", "optimizer", "all"] = "none"
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="raw DeepSpeed settings; they win")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    evaluate_every: int = Field(100, ge=1, description="steps between looks at the validation split")
    max_failures: int = Field(2, ge=0, description="restarts after a lost worker")

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _one_rate(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float | str) else value

    @model_validator(mode="after")
    def _batches(self) -> Self:
        if self.global_batch % self.workers:
            raise ValueError(f"global_batch {self.global_batch} is not a multiple of workers {self.workers}")
        return self


class StudentConfig(Section):
    """The student, its losses and its training."""

    model: StudentModel = StudentModel()
    losses: dict[str, LossConfig] = Field(
        default_factory=lambda: {"soft": LossConfig(weight=0.9), "hard": LossConfig(weight=0.1)}, min_length=1)
    training: TrainingConfig = TrainingConfig()
    ceiling: str | None = Field(None, description="source of the teacher's own labelled rows, for a ceiling if allowed")


class EvaluationConfig(Section):
    """What is measured on the test split."""

    corruptions: tuple[str, ...] | None = Field(None, description="default: every corruption of the task")
    severities: tuple[Literal[1, 2, 3], ...] = Field((1, 2, 3), min_length=1, description="1 = mild … 3 = strong")
    bootstrap: int = Field(1000, ge=100, description="resamples behind an interval")
    bins: int = Field(15, ge=2, description="bins of the calibration error")
    latency_requests: int = Field(100, ge=10, description="single requests timed a model")
    batch: int = Field(64, ge=1, description="examples a batch, for throughput")


class Limit(Section):
    """What the gate asks of one metric."""

    min: float | None = Field(None, description="least acceptable value")
    max: float | None = Field(None, description="greatest acceptable value")
    margin: float | None = Field(None, ge=0, description="how much worse than the reference is still acceptable")
    relative: float | None = Field(None, ge=0, description="least share of the teacher's value, e.g. 0.97")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if all(v is None for v in (self.min, self.max, self.margin, self.relative)):
            raise ValueError("a limit needs at least one of min, max, margin, relative")
        return self


class GateConfig(Section):
    """When a student replaces the model in production."""

    limits: dict[str, Limit] = Field(
        default_factory=lambda: {"accuracy": Limit(relative=0.97, margin=0.01), "ece": Limit(max=0.1)},
        description="by metric name; `margin` is against the champion")
    beat: tuple[str, ...] = Field(
        ("baseline_hard_labels",), description="arms whose accuracy the student must exceed beyond doubt")
    alias: str = Field("champion", description="registry alias that a PROMOTE sets")
    model_name: str | None = Field(None, description="registered model; default: the campaign's name")


class DriftConfig(Section):
    """When `relabel` raises the alarm."""

    alpha: float = Field(0.01, gt=0, lt=1, description="false alarms tolerated, over all tests together")
    min_classes_js: float = Field(0.01, ge=0, description="least Jensen–Shannon divergence of the classes, nats")
    min_auc: float = Field(0.6, ge=0.5, le=1, description="least two-sample AUC on embeddings that matters")
    max_rows: int = Field(4000, ge=50, description="rows of each side in the classifier two-sample test")


class CostConfig(Section):
    """Prices; all money is in `currency`."""

    accelerator_hour: float = Field(2.5, ge=0)
    core_hour: float = Field(0.04, ge=0)
    currency: str = "USD"


class TrackingConfig(Section):
    """Where runs are recorded."""

    uri: str | None = Field(None, description="MLflow tracking URI; default: sqlite beside the campaign's output")
    experiment: str | None = Field(None, description="default: the campaign's name")
    enabled: bool = True


class Campaign(Section):
    """A whole campaign, from traffic to verdict."""

    campaign: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    task: Literal["text_classification", "image_classification"]
    seed: int = 0
    output: str | None = Field(None, description="folder or URL of all artifacts; default: ./distill/<campaign>")
    snapshot: SnapshotConfig
    labels: LabelsConfig
    student: StudentConfig = StudentConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    drift: DriftConfig = DriftConfig()
    cost: CostConfig = CostConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def output_url(self) -> str:
        """Folder or URL under which every artifact of the campaign lies."""
        return (self.output or f"distill/{self.campaign}").rstrip("/")

    @property
    def store_url(self) -> str:
        """URL of the label store."""
        return (self.labels.store or f"{self.output_url}/labels").rstrip("/")

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the whole configuration."""
        return fingerprint(self.model_dump(mode="json", by_alias=True))


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> Campaign:
    """Read a campaign's YAML file and apply dotted overrides (``labels.signal.k=64``).

    Raises:
        ConfigError: every wrong field at once, each with what was found and what is allowed.
    """
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, found {type(value).__name__}")
    for override in overrides:
        _override(value, override)
    return parse_config(value, origin=str(path))


def parse_config(value: dict[str, Any], origin: str = "config") -> Campaign:
    """Validate a campaign given as plain values; errors as `load_config`."""
    try:
        return Campaign.model_validate(value)
    except ValidationError as error:
        # A list of wrong items is called too short as well: only an empty one is.
        lines = [_explain(item) for item in error.errors() if item["type"] != "too_short" or not item["input"]]
        raise ConfigError("\n  ".join([f"{origin}: {len(lines)} wrong field(s)", *lines])) from error


def _explain(item: Any) -> str:
    """One wrong field as one line: its dotted name, what was found, what is allowed."""
    where = ".".join(str(part) for part in item["loc"]) or "(whole file)"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{where}: is required but missing"
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown field"
    return f"{where}: {message[0].lower()}{message[1:]}; found {repr(item['input'])[:80]}"


def _override(value: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set needs name=value, found {override!r}")
    *parents, last = name.split(".")
    for parent in parents:
        value = value.setdefault(parent, {})
        if not isinstance(value, dict):
            raise ConfigError(f"--set {name}: {parent} is not a section")
    try:
        value[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {name}: {text!r} is not a YAML value: {error}") from error
