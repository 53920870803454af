"""The student, its losses and its training."""

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from ray_distill.config.losses import LossConfig, changes
from ray_distill.config.section import INPUT, NOT_DECIDING, Section
from ray_distill.config.training import TrainingConfig
from ray_distill.redact import secrets_in

#: Fields of `StudentModel` that may stand beside ``student.size``.
SIZED_FIELDS = ("max_length", "trust_remote_code")


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

    source: Literal["config", "teacher_layers", "teacher_width", "checkpoint", "module"] = Field("config", alias="from")
    model: str | None = Field(None, description="checkpoint folder or URL, or module:function", json_schema_extra=INPUT)
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="config: teacher's config fields to change; teacher_width: hidden_size, num_attention_heads, "
        "intermediate_size",
    )
    embeddings: Literal["new", "copy", "slice"] = Field(
        "new",
        description="config, language models: token embeddings and head: drawn; the teacher's, where the width "
        "is the same; or its first columns",
    )
    width: float | None = Field(
        None,
        gt=0,
        le=1,
        description="teacher_width: share of the teacher's channels, heads and neurons that is kept, those with the "
        "greatest activations on calibration rows; or give sizes as overrides",
    )
    keep: int | None = Field(
        None,
        ge=0,
        description="teacher_layers: how many layers to copy; 0 = the mean of the tokens' embeddings, where the "
        "teacher's head has pool: mean; teacher_width: likewise, default: all",
    )
    layers: Literal["evenly", "importance"] | tuple[NonNegativeInt, ...] = Field(
        "evenly",
        description="teacher_layers and teacher_width: which layers to copy: evenly spaced; importance: without the "
        "others the teacher's answers to calibration rows change least; or indices from 0",
    )
    keep_encoder: int | None = Field(
        None,
        ge=1,
        description="teacher_layers, encoder-decoders: how many of the encoder; default: as many as of the decoder",
    )
    kept_tokens: VocabularySettings | None = Field(
        None,
        alias="vocabulary",
        description="students made of the teacher, classifiers of texts: keep the tokens that are frequent in the "
        "train texts, e.g. {keep: 0.999} or {tokens: 8000}; default: all of the teacher's",
    )
    lora: LoraSettings | None = Field(
        None, description="language models that start from trained weights: train adapters alone (needs peft)"
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of module:function")
    max_length: int | None = Field(None, ge=1, description="tokens kept of a text; default: the model's own limit")
    trust_remote_code: bool = False
    chosen_by: str | None = Field(
        None,
        description="written by the program where student.size or student.latency_ms chose this model: what was "
        "required and what was reached; has no effect",
        json_schema_extra=NOT_DECIDING,
    )

    @field_validator(
        "layers", mode="before", json_schema_input_type=Literal["evenly", "importance"] | list[NonNegativeInt]
    )
    @classmethod
    def _rule(cls, value: Any) -> Any:
        """Return one message for both forms: pydantic would report each alternative apart."""
        indices = value if isinstance(value, list | tuple) else ()
        if value not in ("evenly", "importance") and not (
            indices and all(type(index) is int and 0 <= index <= 1e6 for index in indices)
        ):
            raise ValueError("should be evenly, importance, or a list of layers counted from 0, e.g. [0, 3]")
        return value

    @model_validator(mode="after")
    def _needs(self) -> Self:
        if self.source in ("checkpoint", "module") and not self.model:
            raise ValueError(f"from: {self.source} needs `model`")
        if self.source == "teacher_layers" and self.keep is None and isinstance(self.layers, str):
            raise ValueError("from: teacher_layers needs `keep`")
        self._check_layers()
        self._check_width()
        if self.kept_tokens is not None and self.source in ("checkpoint", "module"):
            raise ValueError(
                f"vocabulary keeps some of the teacher's tokens, and the student of from: {self.source} has its own: "
                "leave it out, or start the student from: config, teacher_layers or teacher_width"
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
        if self.source not in ("teacher_layers", "teacher_width") or self.keep_encoder is not None:
            raise ValueError(
                "layers goes with from: teacher_layers or teacher_width, and keep_encoder with layers: evenly"
            )
        if self.layers == "importance" and not self.keep:
            raise ValueError("layers: importance needs `keep`, of 1 or more")
        if not isinstance(self.layers, str) and list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers {list(self.layers)}: give indices that rise, each once, e.g. [0, 3, 5]")
        if not isinstance(self.layers, str) and self.keep not in (None, len(self.layers)):
            raise ValueError(f"keep is {self.keep}, and layers lists {len(self.layers)}: leave keep out")

    def _check_width(self) -> None:
        if self.source != "teacher_width":
            if self.width is not None:
                raise ValueError(f"width goes with from: teacher_width, and from is {self.source}: leave it out")
            return
        sizes = ("hidden_size", "num_attention_heads", "intermediate_size")
        if (self.width is None) == (not self.overrides):
            raise ValueError(f"from: teacher_width needs either width, e.g. 0.5, or overrides of {', '.join(sizes)}")
        wrong = [key for key, value in self.overrides.items() if key not in sizes or type(value) is not int]
        if wrong:
            raise ValueError(f"overrides.{wrong[0]}: from: teacher_width takes whole numbers as {', '.join(sizes)}")


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
    size: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="in place of the shape of `model`: share of the teacher's parameters, embeddings and head "
        "included, that the student has at most; layers, width and tokens follow from it",
    )
    latency_ms: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="in place of the shape of `model`: milliseconds, in the median, of one example of `max_length` "
        "tokens on the machine of the command, with labels.resources.cpus threads; measured once, and kept with the "
        "output",
    )
    losses: dict[str, LossConfig] = Field(
        default_factory=lambda: {"soft": LossConfig(weight=0.9, temperature="auto"), "hard": LossConfig(weight=0.1)},
        min_length=1,
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

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        """Refuse a shape beside the size that is to choose one."""
        if self.size is not None and self.latency_ms is not None:
            raise ValueError("size and latency_ms both choose the student's shape: give one of them")
        if self.size is None and self.latency_ms is None:
            return self
        given, plain = self.model.model_dump(by_alias=True), StudentModel().model_dump(by_alias=True)
        shaped = [name for name, value in given.items() if value != plain[name] and name not in SIZED_FIELDS]
        if shaped:
            by = "size" if self.size is not None else "latency_ms"
            raise ValueError(
                f"{by} chooses the student's shape, and model.{shaped[0]} sets it too: leave one of them out (beside "
                f"{by}, model has {', '.join(SIZED_FIELDS)})"
            )
        return self

    @model_validator(mode="after")
    def _known_length(self) -> Self:
        if self.training.epochs is None:
            for name, loss in self.losses.items():
                changing = [key for key, value in loss.all_settings.items() if changes(value)]
                if changing:
                    raise ValueError(
                        f"losses.{name}.{changing[0]} changes over the training, whose length a budget leaves open: "
                        "set training.epochs"
                    )
        return self
