"""The teacher, what is stored of it, and how a store is filled."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_distill.config.section import INPUT, NOT_DECIDING, OUTPUT, Dtype, Pool, Section, Temperature


class HeadConfig(Section):
    """A linear classification head, fitted on labelled rows, for an encoder that has none."""

    pool: Literal["mean", "cls", "last"] = "mean"
    normalize: bool = Field(True, description="scale the pooled embedding to length 1 before the head")
    max_rows: int = Field(10_000, ge=1, description="labelled train rows used at most, the first by row id")


class LanguageConfig(Section):
    """Tokenization for teacher and students of language models, and the learnt tokens."""

    format: Literal["text", "chat"] = Field(
        "text",
        description="chat: a row is a conversation (`messages` as OpenAI's API has them), put through the "
        "tokenizer's own template",
    )
    roles: tuple[str, ...] = Field(("assistant",), min_length=1, description="chat: whose messages are learnt")
    long: Literal["cut", "reject"] = Field("cut", description="what becomes of a text of more than max_length tokens")
    prefix: str = Field("", description='seq2seq: put before every source, as T5\'s "summarize: "')
    target_length: int | None = Field(None, ge=1, description="seq2seq: tokens kept of a target; default: max_length")


class VllmConfig(Section):
    """vLLM as the teacher's engine, and its own environment; see teachers/README.md."""

    python: str | None = Field(
        None,
        description="interpreter of vLLM's own environment, at this path on every node that runs the teacher "
        "(Ray's runtime_env: py_executable); default: the environment that Ray's workers are in anyway",
        json_schema_extra=NOT_DECIDING,
    )
    tensor_parallel_size: int = Field(
        1, ge=1, description="GPUs that each layer is split over; labels.resources.gpus must be as many"
    )
    gpu_memory_utilization: float = Field(
        0.8,
        gt=0,
        le=1,
        description="share of a GPU's memory (of the machine's where there is none) for weights and "
        "cache; vLLM's own 0.92 leaves no room for the log-probabilities of prompts, which it does not plan for",
        json_schema_extra=NOT_DECIDING,
    )
    max_num_seqs: int = Field(64, ge=1, description="texts that are computed at once")
    max_num_batched_tokens: int = Field(
        2048, ge=16, description="tokens that are computed at once; so many rows of logits of one text exist together"
    )

    @field_validator("python")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and not PurePosixPath(value).is_absolute():
            raise ValueError("must be an absolute path: Ray's workers start in folders of their own")
        return value

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is less than max_num_seqs "
                f"{self.max_num_seqs}: each text that is computed takes a token of a step at least"
            )
        return self


class TeacherConfig(Section):
    """The model whose answers are stored."""

    model: str = Field(description="checkpoint folder or URL, or module:function", json_schema_extra=INPUT)
    engine: str = Field(
        "transformers",
        description="transformers, or vllm: language models, estimator topk at T = 1 alone (teachers/engines.py)",
    )
    vllm: VllmConfig = VllmConfig()
    revision: str | None = Field(None, description="sha256:… of the checkpoint's files; a mismatch is an error")
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of module:function")
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None,
        description="names of its classes in the order of its outputs; default: its own (id2label), or, where these "
        "are LABEL_0, LABEL_1…, those of snapshot.classes",
    )
    head: HeadConfig | None = Field(None, description="fit a head on labelled rows: for encoders without one")
    dtype: Dtype = "float32"
    device: str = Field(
        "auto",
        description="auto = cuda where there is one, else cpu; spread = layer by layer over "
        "all GPUs of its actor, for a checkpoint larger than one (needs accelerate)",
    )
    max_length: int | None = Field(None, ge=1, description="tokens kept of a text; default: the model's own limit")
    language: LanguageConfig = Field(LanguageConfig(), description="language models: what is learnt of a text")
    trust_remote_code: bool = False


#: Temperatures of a dense distribution that training may use where none are given.
_FREE = (1.0, 2.0, 4.0)


class SignalConfig(Section):
    """Stored form of the teacher's distribution."""

    estimator: Literal["dense", "topk", "sampled", "hybrid"] = Field(
        "dense",
        description="what stands for the distribution (MATHS.md §1): every class; the k likeliest and the "
        "mass of the rest; draws; the k likeliest exactly and draws from the rest; default: dense, and of language "
        "models draws in the compact encoding (topk where k, temperatures or the engine need it)",
    )
    k: int = Field(
        64,
        ge=1,
        description="classes stored a position (topk), or exactly (hybrid); all of a classifier's "
        "if it has fewer, an error for a language model",
    )
    draws: int = Field(50, ge=1, description="draws a position (sampled, hybrid)")
    exponent: float = Field(1.0, ge=0, le=2, description="draws come from p^exponent; 1 = from the teacher itself")
    encoding: str = Field(
        "lossless",
        description="lossless, or compact: a few times smaller; what it adds in nats is measured and recorded "
        "(labels/format/codecs)",
    )
    temperatures: tuple[Temperature, ...] = Field(
        _FREE,
        min_length=1,
        description="temperatures training may use, 0.01 to 1,000 (MATHS.md §3); default: 1, 2 and 4 with the "
        "estimator dense, of which no temperature costs a byte, else 1",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        if isinstance(value, dict) and "temperatures" not in value and value.get("estimator", "dense") != "dense":
            return {**value, "temperatures": (1.0,)}
        return value

    @field_validator("temperatures", mode="after")
    @classmethod
    def _with_one(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return value if 1.0 in value else (1.0, *value)

    @property
    def drawn(self) -> bool:
        """Return whether stored classes are drawn."""
        return self.estimator in ("sampled", "hybrid")

    @model_validator(mode="after")
    def _temperatures(self) -> Self:
        if len(set(self.temperatures)) != len(self.temperatures):
            raise ValueError(f"temperatures must be distinct, found {list(self.temperatures)}")
        return self


class HiddenConfig(Section):
    """Which hidden states are stored, and in which form."""

    layers: tuple[int, ...] = Field((), description="layer indices as in `hidden_states`; negative from the end")
    pool: Pool = "mean"
    dtype: Literal["float32", "bfloat16", "float16", "int8", "float8"] = Field(
        "bfloat16", description="stored type; int8 and float8 (E4M3) have a scale for each vector"
    )
    rank: int | None = Field(
        None,
        ge=1,
        description="project on this many principal components of the calibration split; default: not projected",
    )
    variance: float | None = Field(None, gt=0, le=1, description="or on as many as keep this share of the variance")

    @model_validator(mode="after")
    def _one_basis(self) -> Self:
        if self.rank is not None and self.variance is not None:
            raise ValueError("rank and variance both set the number of components: give one")
        return self


class Floor(Section):
    """Bounds of one metric that a teacher must keep."""

    min: float | None = Field(None, description="least acceptable value")
    max: float | None = Field(None, description="greatest acceptable value")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a floor needs min or max")
        return self


class CheckConfig(Section):
    """The teacher's floor on the calibration split; below it labelling does not start."""

    limits: dict[str, Floor] = Field({}, description="by metric name, e.g. accuracy: {min: 0.9}")
    beat_majority: bool = Field(True, description="refuse a teacher no better than the majority class")


class Resources(Section):
    """Resources of labelling. Batch and threads decide results: they change the last digits."""

    actors: tuple[int, int] = Field(
        (1, 1), description="least and most teacher actors: 1 <= least <= most", json_schema_extra=NOT_DECIDING
    )
    gpus: float = Field(0, ge=0, description="GPUs a teacher actor", json_schema_extra=NOT_DECIDING)
    cpus: float = Field(1, gt=0, description="CPUs a teacher actor; also its torch threads")
    batch: int = Field(64, ge=1, description="examples a teacher batch")

    @field_validator("actors")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError("needs 1 <= least <= most")
        return value


class FailuresConfig(Section):
    """Time limits and retries of a failing teacher; they change no label that it can give."""

    batch_seconds: float = Field(600, gt=0, description="seconds a teacher batch may take, also a batch of one row")
    load_seconds: float = Field(3600, gt=0, description="seconds in which the teacher must be loaded")
    attempts: int = Field(
        3,
        ge=1,
        description="times that a process may die on the same unit, the same row, or while "
        "it loads the teacher; and rows in a row that must fail before the teacher is suspected",
    )


class LabelsConfig(Section):
    """The label store and how it is filled.

    The floor of the teacher and the limits of failures do not decide: they stop a run, and change no label.
    """

    store: str | None = Field(
        None, description="URL of the label store; default: <output>/labels", json_schema_extra=OUTPUT
    )
    teacher: TeacherConfig
    signal: SignalConfig = SignalConfig()
    hidden: HiddenConfig = HiddenConfig()
    check: CheckConfig = Field(CheckConfig(), json_schema_extra=NOT_DECIDING)
    resources: Resources = Resources()
    failures: FailuresConfig = Field(FailuresConfig(), json_schema_extra=NOT_DECIDING)
    unit_rows: int = Field(512, ge=1, description="most rows a work unit: what is redone after a crash")
    unit_bytes: int = Field(64 << 20, ge=1, description="most bytes a work unit, by the size of the calibration rows")
    max_bad_fraction: float = Field(
        0.01, ge=0, le=1, description="above this share of unlabelled rows, stop", json_schema_extra=NOT_DECIDING
    )
