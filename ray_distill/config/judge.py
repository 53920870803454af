"""What is measured, when a student is promoted, when drift alarms, and what things cost."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ray_distill.config.section import Section


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
