"""The student, its losses and its training."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from ray_distill.config.losses import LossConfig
from ray_distill.config.section import INPUT, NOT_DECIDING, Section
from ray_distill.redact import secrets_in


class LoraSettings(Section):
    """Low-rank adapters, trained instead of the weights, and merged when the student is saved."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0, description="the adapters' output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field((), description="names of linear layers; default: all but the head")


class VocabularySettings(Section):
    """Tokens of the teacher that a student keeps; others are cut into smaller ones."""

    keep: float | None = Field(
        None, gt=0, le=1, description="share of the tokens of the train texts that the kept tokens must cover"
    )
    tokens: int | None = Field(
        None, ge=1, description="most tokens; special tokens and single characters are always kept, and count"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.keep is None) == (self.tokens is None):
            raise ValueError("vocabulary has either keep or tokens: give one of them")
        return self


class StudentModel(Section):
    """Source of the student's weights."""

    source: Literal["config", "teacher_layers", "checkpoint", "module"] = Field("config", alias="from")
    model: str | None = Field(None, description="checkpoint folder or URL, or module:function", json_schema_extra=INPUT)
    overrides: dict[str, Any] = Field(default_factory=dict, description="config: teacher's config fields to change")
    embeddings: Literal["new", "copy", "slice"] = Field(
        "new",
        description="config, language models: token embeddings and head: drawn; the teacher's, where the width "
        "is the same; or its first columns",
    )
    keep: int | None = Field(None, ge=1, description="teacher_layers: how many layers to copy")
    layers: Literal["evenly", "importance"] | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = Field(
        "evenly",
        description="teacher_layers: which layers to copy: evenly spaced; importance: without the others the teacher's "
        "answers to calibration rows change least; or indices from 0",
    )
    keep_encoder: int | None = Field(
        None,
        ge=1,
        description="teacher_layers, encoder-decoders: how many of the encoder; default: as many as of the decoder",
    )
    kept_tokens: VocabularySettings | None = Field(
        None,
        alias="vocabulary",
        description="config and teacher_layers, classifiers of texts: keep the tokens that are frequent in the train "
        "texts, e.g. {keep: 0.999} or {tokens: 8000}; default: all of the teacher's",
    )
    lora: LoraSettings | None = Field(
        None, description="language models that start from trained weights: train adapters alone (needs peft)"
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of module:function")
    max_length: int | None = Field(None, ge=1, description="tokens kept of a text; default: the model's own limit")
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _needs(self) -> Self:
        if self.source in ("checkpoint", "module") and not self.model:
            raise ValueError(f"from: {self.source} needs `model`")
        if self.source == "teacher_layers" and self.keep is None and isinstance(self.layers, str):
            raise ValueError("from: teacher_layers needs `keep`")
        self._check_layers()
        if self.kept_tokens is not None and self.source in ("checkpoint", "module"):
            raise ValueError(
                f"vocabulary keeps some of the teacher's tokens, and the student of from: {self.source} has its own: "
                "leave it out, or start the student from: config or teacher_layers"
            )
        if self.kept_tokens is not None and "vocab_size" in self.overrides:
            raise ValueError("vocabulary and overrides.vocab_size both set the number of tokens: give one of them")
        if self.lora is not None and self.source == "config":
            raise ValueError("lora trains beside weights that stay as they are, and from: config draws them")
        if secrets_in(self.arguments):
            raise ValueError(
                "arguments are saved with the student, whose function is called with them again: leave secrets out, "
                "and let the function read them from the environment"
            )
        if self.embeddings != "new" and self.source != "config":
            raise ValueError(f"embeddings: {self.embeddings} goes with from: config; other students have theirs")
        return self

    def _check_layers(self) -> None:
        if self.layers == "evenly":
            return
        if self.source != "teacher_layers" or self.keep_encoder is not None:
            raise ValueError("layers goes with from: teacher_layers, and keep_encoder with layers: evenly")
        if not isinstance(self.layers, str) and list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers {list(self.layers)}: give indices that rise, each once, e.g. [0, 3, 5]")
        if not isinstance(self.layers, str) and self.keep not in (None, len(self.layers)):
            raise ValueError(f"keep is {self.keep}, and layers lists {len(self.layers)}: leave keep out")


class CheckpointPolicy(Section):
    """Checkpoints that are kept; the one that a run was resumed from always is."""

    last: int = Field(2, ge=1, description="the newest")
    best: int = Field(
        0,
        ge=0,
        description="the best by the validation loss measured last before each, as arms are judged; these stay "
        "when the training is over, too",
    )


class SamplingConfig(Section):
    """Rows that come more often than others in an epoch, which has as many steps as before."""

    by: Literal["class", "entropy"] = Field(
        description="class: the true one, else the teacher's first choice; entropy: the teacher's, of a document the "
        "mean over its tokens"
    )
    power: float = Field(
        1.0,
        gt=0,
        le=4,
        description="class: 1 = all classes equally often, 0.5 = by the root of their size; entropy: "
        "a row's share is its entropy to this power",
    )


class TrainingConfig(Section):
    """How a student is trained; all baselines get the same budget and tuning.

    Fields that divide the work among passes, processes and memory do not decide: the curve is the same except for
    rounding. So a run may be resumed on other machines than it began on.
    """

    epochs: float = Field(3, gt=0, le=1e6, description="passes over the training rows; fixes the steps of every arm")
    global_batch: int = Field(256, ge=1, description="examples an optimiser step, over all workers")
    micro_batch: int = Field(
        64, ge=1, description="examples a forward pass, on one worker", json_schema_extra=NOT_DECIDING
    )
    micro_tokens: int = Field(
        0,
        ge=0,
        description="texts: tokens a forward pass, padding included: examples of like "
        "length share one, at most micro_batch of them; 0 = micro_batch examples as they come",
        json_schema_extra=NOT_DECIDING,
    )
    learning_rate: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        (3e-4,), min_length=1, description="one, or several: each arm keeps its best on validation"
    )
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the rate rises")
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, which is then "
        "what is validated and exported, e.g. 0.999; default: the weights themselves",
    )
    engine: Literal["deepspeed", "torch"] = Field("deepspeed", json_schema_extra=NOT_DECIDING)
    workers: int | tuple[int, int] = Field(
        1,
        description="processes; two numbers = between the first and the second of them, as many as the cluster has "
        "room for at each moment",
        json_schema_extra=NOT_DECIDING,
    )
    gpus: float = Field(0, ge=0, description="GPUs a worker", json_schema_extra=NOT_DECIDING)
    cpus: float = Field(1, gt=0, description="CPUs a worker; also its torch threads", json_schema_extra=NOT_DECIDING)
    zero_stage: Literal[0, 1, 2, 3] = Field(1, json_schema_extra=NOT_DECIDING)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    offload: Literal["none", "optimizer", "all"] = Field("none", json_schema_extra=NOT_DECIDING)
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="raw DeepSpeed settings; they win")
    weigh_by: Literal["count", "row"] = Field(
        "count",
        description="weight of a row in losses and in validation: how often it came, as evaluation, gate and drift "
        "weigh it; or row: 1, however often it came",
    )
    sampling: SamplingConfig | None = Field(None, description="which rows come more often; default: each once an epoch")
    shuffle_units: int = Field(
        64,
        ge=1,
        description="units of labels that rows are shuffled over at a time; where "
        "there are no more, over all rows. At twice the workers or more, each worker opens its "
        "own units",
    )
    stream: Literal["auto", "always", "never"] = Field(
        "auto",
        description="read training rows and labels while training goes on, instead of all before it; auto: "
        "where they need more than memory_gb. The curve is the same",
        json_schema_extra=NOT_DECIDING,
    )
    memory_gb: float = Field(
        8.0,
        gt=0,
        description="gigabytes of training rows and labels in a worker's memory",
        json_schema_extra=NOT_DECIDING,
    )
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints", json_schema_extra=NOT_DECIDING)
    checkpoints: CheckpointPolicy = Field(
        CheckpointPolicy(), description="which of them stay", json_schema_extra=NOT_DECIDING
    )
    evaluate_every: int = Field(100, ge=1, description="steps between validations")
    patience: int = Field(
        0, ge=0, description="validations without a better result after which an arm's training ends; 0 = never"
    )
    gradient_norms_every: int = Field(
        0,
        ge=0,
        description="steps between reports of each loss's gradient norm at the student's outputs; 0 = never",
        json_schema_extra=NOT_DECIDING,
    )
    max_failures: int = Field(2, ge=0, description="restarts after a lost worker", json_schema_extra=NOT_DECIDING)
    packed: int = Field(
        0,
        ge=0,
        description="language models: tokens of a sequence that documents are packed into; "
        "0 = one document a sequence, padded",
        json_schema_extra=NOT_DECIDING,
    )
    compile: str | None = Field(
        None,
        description="backend of torch.compile for the student's passes, e.g. inductor; default: none",
        json_schema_extra=NOT_DECIDING,
    )
    activation_checkpointing: bool = Field(
        False,
        description="recompute activations in the backward pass: less "
        "memory, about a third more time; transformers models alone",
        json_schema_extra=NOT_DECIDING,
    )

    @field_validator("learning_rate", mode="before", json_schema_input_type=float | tuple[float, ...])
    @classmethod
    def _one_rate(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else value

    @field_validator("workers", mode="before", json_schema_input_type=PositiveInt | tuple[PositiveInt, PositiveInt])
    @classmethod
    def _counts(cls, value: Any) -> Any:
        """Return one message for both forms: pydantic would report each alternative apart."""
        counts = tuple(value) if isinstance(value, list | tuple) else (value,)
        whole = all(isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= 1e6 for count in counts)
        if not whole or (isinstance(value, list | tuple) and len(counts) != 2):
            raise ValueError(
                "should be a whole number of at least 1 and at most 1,000,000, or two of them: the least and the most"
            )
        return value if len(counts) == 1 else counts

    @property
    def least_workers(self) -> int:
        """Workers without which training does not start."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Workers that training takes where there is room."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _batches(self) -> Self:
        if self.least_workers > self.most_workers:
            raise ValueError(
                f"workers [{self.least_workers}, {self.most_workers}]: the first is the least, the second the most"
            )
        if self.compile is not None and self.engine == "deepspeed" and self.zero_stage == 3:
            raise ValueError(
                "compile goes with zero_stage 0 to 2: at 3 DeepSpeed's hooks around every layer leave "
                "nothing whole to compile"
            )
        # Numbers in between may leave a rank some padding; the ends are chosen, and should not waste any.
        for workers in (self.least_workers, self.most_workers):
            if self.global_batch % workers:
                raise ValueError(f"global_batch {self.global_batch} is not a multiple of workers {workers}")
        return self


class MixedLabels(Section):
    """Another label set that a student learns from."""

    labels: str = Field(
        description="file or URL of the reference that `ray-distill label` printed for it", json_schema_extra=INPUT
    )
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)


class MixtureConfig(Section):
    """Label sets beside the campaign's own: of other teachers, or of other snapshots."""

    how: Literal["average", "source"] = Field(
        description="average: the campaign's rows, each taught by the weighted mean of its teachers' labels; "
        "source: the rows of all sets, each taught by its own labels, a set's share of an epoch being its weight"
    )
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="of the campaign's own labels")
    others: tuple[MixedLabels, ...] = Field(min_length=1)

    @property
    def weights(self) -> tuple[float, ...]:
        """Return the weights of all label sets, the campaign's own first."""
        return (self.weight, *(other.weight for other in self.others))


class StudentConfig(Section):
    """The student, its losses and its training."""

    model: StudentModel = StudentModel()
    losses: dict[str, LossConfig] = Field(
        default_factory=lambda: {"soft": LossConfig(weight=0.9), "hard": LossConfig(weight=0.1)}, min_length=1
    )
    training: TrainingConfig = TrainingConfig()
    calibrate: Literal["temperature", "none"] = Field(
        "temperature",
        description="temperature: divide the logits of every arm by the one number with which its probabilities fit "
        "the calibration split best, before it is exported (language models are exported as trained); none: export all "
        "as trained",
    )
    mixture: MixtureConfig | None = Field(None, description="label sets to learn from beside `labels`; default: none")
    ceiling: str | None = Field(
        None, description="source of the teacher's own labelled rows, for a ceiling if allowed", json_schema_extra=INPUT
    )

    @field_validator("losses")
    @classmethod
    def _some_weight(cls, value: dict[str, LossConfig]) -> dict[str, LossConfig]:
        if not any(loss.ever_counts for loss in value.values()):
            raise ValueError("every loss has the weight 0, so nothing would be learnt: give one of them a weight")
        return value
