"""How a student is trained: its budget, rates, batches, processes and checkpoints."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, field_serializer, field_validator, model_validator

from ray_distill.config.section import AUTO, NOT_DECIDING, Section


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


class BudgetConfig(Section):
    """Training until the validation loss has stopped improving, within limits.

    The learning rate stays until then, and falls to 0 over the last steps. The student's steps are those of all arms.
    """

    passes: tuple[Annotated[float, Field(gt=0, le=1e6)], Annotated[float, Field(gt=0, le=1e6)]] = Field(
        (3.0, 60.0), description="passes over the student's train rows: at least, and at most"
    )
    examples: int = Field(
        1_000_000,
        ge=1,
        description="examples at most, whatever `passes` allows, unless the least passes are more than that",
    )
    window: float = Field(
        0.5, gt=0, lt=1, description="share of the steps so far whose validations are compared with those before them"
    )
    gain: float = Field(
        0.05, ge=0, lt=1, description="share of the validation loss by which these have to be better, or the rate falls"
    )
    decay: float = Field(
        0.25, gt=0, le=1, description="steps over which the rate falls, as a share of the steps before"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.passes[0] > self.passes[1]:
            raise ValueError(f"passes {list(self.passes)}: the first is the least, the second the most")
        return self

    def bounds(self, examples: int) -> tuple[float, float]:
        """Return the least and the most passes over ``examples`` examples."""
        least, most = self.passes
        return least, max(least, min(most, self.examples / max(examples, 1)))


class TrainingConfig(Section):
    """How a student is trained; all baselines get the same budget and tuning.

    Fields that divide the work among passes, processes and memory do not decide: the curve is the same except for
    rounding. So a run may be resumed on other machines than it began on.
    """

    budget: BudgetConfig | None = Field(
        None, description="auto, the default: train until the validation loss has stopped improving; or its limits"
    )
    epochs: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="instead of a budget: passes over the training rows; fixes the steps of every arm",
    )
    global_batch: int = Field(
        0,
        ge=0,
        description="examples an optimiser step, over all workers; 0 or auto: by the number of train rows, 16 to 256",
        json_schema_extra=AUTO,
    )
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
        (),
        description="one, or several: each arm keeps its best on validation; auto, the default: each arm tries a few "
        "by short runs, around one that suits its size and start",
    )
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the rate rises")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="how the rate goes on after the warm-up, where epochs are given"
    )
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
    evaluate_every: int = Field(
        0,
        ge=0,
        description="steps between validations; 0 or auto: so that validating takes about a twentieth of the time",
        json_schema_extra=AUTO,
    )
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

    @field_validator("learning_rate", mode="before", json_schema_input_type=float | tuple[float, ...] | Literal["auto"])
    @classmethod
    def _one_rate(cls, value: Any) -> Any:
        if value == "auto":
            return ()
        if value == []:
            raise ValueError("should be auto, a rate, or several")
        return (value,) if isinstance(value, int | float) else value

    @field_serializer("learning_rate")
    def _rates_or_auto(self, value: tuple[float, ...]) -> tuple[float, ...] | str:
        return value or "auto"

    @field_validator("global_batch", "evaluate_every", mode="before", json_schema_input_type=int | Literal["auto"])
    @classmethod
    def _by_the_rows(cls, value: Any) -> Any:
        return 0 if value == "auto" else value

    @field_validator("budget", mode="before", json_schema_input_type=BudgetConfig | Literal["auto"] | None)
    @classmethod
    def _default_budget(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @property
    def open_budget(self) -> BudgetConfig | None:
        """Return the budget in force; None where ``epochs`` fixes the steps."""
        return None if self.epochs is not None else self.budget or BudgetConfig()

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
        if self.budget is not None and self.epochs is not None:
            raise ValueError("budget trains until nothing improves, epochs so many passes: give one of them")
        # Numbers in between may leave a rank some padding; the ends are chosen, and should not waste any.
        for workers in (self.least_workers, self.most_workers):
            if self.global_batch % workers:
                raise ValueError(f"global_batch {self.global_batch} is not a multiple of workers {workers}")
        return self
