"""The student, its losses and its training."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_distill.config.section import Section


class LoraSettings(Section):
    """Adapters of low rank, trained instead of the weights they stand beside, and merged when the student is saved."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0, description="the adapters' output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field((), description="names of linear layers; default: all but the head")


class StudentModel(Section):
    """Where the student's weights come from."""

    source: Literal["config", "teacher_layers", "checkpoint", "module"] = Field("config", alias="from")
    model: str | None = Field(None, description="checkpoint folder or URL, or module:function")
    overrides: dict[str, Any] = Field(default_factory=dict, description="config: teacher's config fields to change")
    embeddings: Literal["new", "copy", "slice"] = Field(
        "new", description="config, language models: token embeddings and head: drawn; the teacher's, where the width "
        "is the same; or its first columns")
    keep: int | None = Field(None, ge=1, description="teacher_layers: how many layers to copy, evenly spaced")
    keep_encoder: int | None = Field(None, ge=1, description="teacher_layers, encoder-decoders: how many of the "
                                     "encoder; default: as many as of the decoder")
    lora: LoraSettings | None = Field(None, description="language models that start from trained weights: train "
                                      "adapters alone (needs peft)")
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of module:function")
    max_length: int | None = Field(None, ge=1, description="tokens kept of a text; default: the model's own limit")
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _needs(self) -> Self:
        if self.source in ("checkpoint", "module") and not self.model:
            raise ValueError(f"from: {self.source} needs `model`")
        if self.source == "teacher_layers" and self.keep is None:
            raise ValueError("from: teacher_layers needs `keep`")
        if self.lora is not None and self.source == "config":
            raise ValueError("lora trains beside weights that stay as they are, and from: config draws them")
        if self.embeddings != "new" and self.source != "config":
            raise ValueError(f"embeddings: {self.embeddings} goes with from: config; other students have theirs")
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
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "skewed_kl"] = Field(
        "forward_kl", description="soft: sampled and hybrid labels allow forward_kl alone")
    beta: float = Field(0.5, gt=0, lt=1, description="soft, jsd: weight of the teacher in the mean")
    skew: float = Field(0.1, gt=0, lt=1, description="soft, skewed_kl: weight of the teacher in the mixture")
    tail: Literal["bucket", "renormalised"] = Field(
        "bucket", description="soft: renormalised leaves the mass of what is not stored out; biased, for comparison")
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
    shuffle_units: int = Field(64, ge=1, description="units of labels that rows are shuffled over at a time; where "
                               "there are no more, over all rows. At twice the workers or more, each worker opens its "
                               "own units")
    stream: Literal["auto", "always", "never"] = Field(
        "auto", description="read training rows and labels while training goes on, instead of all before it; auto: "
        "where they need more than memory_gb. The curve is the same")
    memory_gb: float = Field(8.0, gt=0, description="gigabytes of training rows and labels that a worker may hold")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    evaluate_every: int = Field(100, ge=1, description="steps between looks at the validation split")
    max_failures: int = Field(2, ge=0, description="restarts after a lost worker")
    packed: int = Field(0, ge=0, description="language models: tokens of a sequence that documents are packed into; "
                        "0 = one document a sequence, padded")
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less "
                                           "memory, about a third more time; transformers models alone")

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
