"""Configure evaluation, gate, drift, cost and tracking."""

import posixpath
import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_distill.config.section import INPUT, NOT_DECIDING, Section
from ray_distill.redact import redact

#: MLflow's limits (mlflow.utils.validation, and the columns of its database); a test compares them with MLflow's.
MAX_ALIAS, MAX_MODEL_NAME, MAX_EXPERIMENT = 255, 256, 500

#: Beginnings of the URIs of MLflow 3's stores.
MLFLOW_STORES = ("sqlite:///", "postgresql", "mysql", "mssql", "http://", "https://", "databricks")


def check_alias_name(value: str) -> str:
    """Return an alias that MLflow's registry accepts.

    Raises:
        ValueError: it does not; the message names the rule.
    """
    if not re.fullmatch(r"[\w-]+", value) or len(value) > MAX_ALIAS:
        raise ValueError(f"MLflow's aliases have 1 to {MAX_ALIAS} letters, digits, _ or -, and nothing else")
    if value.lower() == "latest" or re.fullmatch(r"[vV]\d+", value):
        raise ValueError(
            "MLflow reserves `latest`, and v with a number, for versions: choose another name, such as champion"
        )
    return value


def check_model_name(value: str) -> str:
    """Return a name that MLflow's registry accepts for a model.

    Raises:
        ValueError: it does not; the message names the rule.
    """
    path = "/" in value or ":" in value or value == "." or value.startswith("..") or posixpath.normpath(value) != value
    if path or not value.strip() or len(value) > MAX_MODEL_NAME or {"'", '"'} <= set(value):
        raise ValueError(
            f"MLflow's registered models have names of 1 to {MAX_MODEL_NAME} characters without / and :, which "
            "do not begin with .. and do not have both kinds of quotes"
        )
    return value


def check_experiment_name(value: str) -> str:
    """Return a name that MLflow accepts for an experiment.

    Raises:
        ValueError: it does not; the message names the rule.
    """
    if not value.strip() or len(value) > MAX_EXPERIMENT:
        raise ValueError(f"MLflow's experiments have names of 1 to {MAX_EXPERIMENT} characters, not blank")
    return value


def check_tracking_uri(value: str) -> str:
    """Return a tracking or registry URI whose kind of store MLflow 3 supports.

    Raises:
        ValueError: it does not support it.
    """
    if value.startswith("sqlite:///~"):
        raise ValueError(f"{value!r} begins with ~, which is not replaced here: write the whole path")
    if not value.startswith(MLFLOW_STORES):
        database = ", whose URI begins with postgresql://" if value.startswith("postgres://") else ""
        raise ValueError(
            f"{redact(value)!r} is not an MLflow 3 store; use http(s)://server, sqlite:///file.db or another "
            f"database{database} (MLflow 3 does not support plain folders)"
        )
    return value


class HarnessConfig(Section):
    """Benchmarks of lm-evaluation-harness for language models (needs the extra lm-eval).

    Their prompts are plain text: no chat template is put around them.
    """

    folder: str = Field(
        description="folder or URL of the tasks' YAML files and their data, whose paths are relative "
        "to it; what they name is run as code; no tasks of the package's own are used",
        json_schema_extra=INPUT,
    )
    tasks: tuple[str, ...] = Field(
        min_length=1, description="tasks or groups of the folder, by name; their figures are lm_eval_<task>_<metric>"
    )
    limit: int | None = Field(None, ge=1, description="documents a task at most, the first; default: all")


class EvaluationConfig(Section):
    """Measurements on the test split."""

    corruptions: tuple[str, ...] | None = Field(
        None,
        description="default: every corruption of the task; of language models none, since each costs three more "
        "passes over the test split (of raw text any may be named: typos, case, dropout)",
    )
    severities: tuple[Literal[1, 2, 3], ...] = Field((1, 2, 3), min_length=1, description="1 = mild … 3 = strong")
    bootstrap: int = Field(1000, ge=100, le=1_000_000, description="resamples behind an interval")
    bins: int = Field(15, ge=2, le=10_000, description="bins of the calibration error")
    prompts: tuple[str, ...] | Literal["test"] = Field(
        (),
        description="language models: texts (for chat: conversations as JSON, or a user's message) that teacher, "
        "student and champion continue side by side, greedily, on the review page and as the artifact generations.json;"
        " test: the beginnings of five documents of the test split. What is written is raw text and goes to the "
        "tracking server, so by default there is none",
    )
    new_tokens: int = Field(64, ge=1, description="tokens written for a prompt at most")
    lm_eval: HarnessConfig | None = Field(
        None, description="language models: benchmarks of teacher, student and champion; default: none"
    )
    written: int = Field(
        200,
        ge=0,
        description="seq2seq: test rows of which every model writes its own target, to be "
        "compared with the reference; 0 = none",
    )
    overlap: bool = Field(
        False,
        description="seq2seq: ROUGE and chrF of what is written, beside exact matches and "
        "word error rate (needs the extra seq2seq)",
    )
    latency_requests: int = Field(100, ge=10, le=1_000_000, description="single requests timed a model")
    batch: int = Field(64, ge=1, description="examples a batch, for throughput")


class Limit(Section):
    """Limit of one metric at the gate."""

    min: float | None = Field(None, description="least acceptable value")
    max: float | None = Field(None, description="greatest acceptable value")
    margin: float | None = Field(None, ge=0, description="how much worse than the champion's is still acceptable")
    relative: float | None = Field(None, ge=0, description="least share of the teacher's value, e.g. 0.97")
    teacher_margin: float | None = Field(
        None, ge=0, description="how much worse than the teacher's is still acceptable, in units of the metric"
    )

    @model_validator(mode="after")
    def _some(self) -> Self:
        if all(value is None for value in (self.min, self.max, self.margin, self.relative, self.teacher_margin)):
            raise ValueError(
                "a limit needs at least one of min, max, margin, relative, teacher_margin; to leave a metric without "
                "a limit, set it to null"
            )
        return self


class GateConfig(Section):
    """When a student replaces the model in production."""

    limits: dict[str, Limit | None] = Field(
        {},
        description="by metric name, in addition to the defaults of the task: a metric that is named here has these "
        "limits instead of its default ones, null leaves it without any, and all other metrics keep theirs. Defaults: "
        "accuracy (mAP) at least 0.97 of the teacher's and at most 0.01 below the champion's; of language models nll "
        "at most the teacher's over 0.9, nll and kl_from_teacher at most 0.01 above the champion's; ece not above the "
        "teacher's by more than 0.05 (several labels 0.03, language models 0.02)",
    )
    beat: tuple[str, ...] = Field(
        ("baseline_hard_labels",),
        description="arms whose accuracy the student must exceed beyond doubt, or of "
        "language models whose nll it must stay below",
    )
    replace_failing_champion: bool = Field(
        True,
        description="a rule that the champion itself breaks beyond doubt does not stop a student that beats the "
        "champion beyond doubt on the headline metric and is no worse on the rule's own metric",
    )
    alias: str = Field("champion", description="registry alias that a PROMOTE sets", json_schema_extra=NOT_DECIDING)
    model_name: str | None = Field(
        None, description="registered model; default: the campaign's name", json_schema_extra=NOT_DECIDING
    )

    @field_validator("alias")
    @classmethod
    def _alias(cls, value: str) -> str:
        return check_alias_name(value)

    @field_validator("model_name")
    @classmethod
    def _model_name(cls, value: str | None) -> str | None:
        return value if value is None else check_model_name(value)


class DriftConfig(Section):
    """When `relabel` raises the alarm."""

    alpha: float = Field(0.01, gt=0, lt=1, description="false alarms tolerated, over all tests together")
    min_classes_js: float = Field(0.01, ge=0, description="least Jensen–Shannon divergence of the classes, nats")
    min_auc: float = Field(0.6, ge=0.5, le=1, description="least two-sample AUC on embeddings that matters")
    max_rows: int = Field(4000, ge=50, description="rows of each side in the classifier two-sample test")
    teacher_rows: int = Field(
        512, ge=20, description="newer rows, and rows of the reference, by which `relabel` checks the teacher"
    )
    max_teacher_loss: float = Field(
        0.1, ge=0, le=1, description="loss of accuracy (or mAP) on newer labelled rows from which the teacher fails"
    )
    max_confidence_loss: float = Field(
        0.1, ge=0, le=1, description="the same of its mean confidence, where newer rows have no labels"
    )


class CostConfig(Section):
    """Prices; all money is in `currency`."""

    accelerator_hour: float = Field(2.5, ge=0)
    core_hour: float = Field(0.04, ge=0)
    currency: str = Field("USD", pattern=r"^[^\s/\\.]{1,12}$", description="its sign or its code")


class TrackingConfig(Section):
    """Tracking server and experiment of the runs."""

    uri: str | None = Field(
        None,
        description="MLflow tracking URI, or none; default: MLFLOW_TRACKING_URI, else sqlite beside the campaign's "
        "output",
    )
    registry_uri: str | None = Field(
        None, description="MLflow registry of the students; default: MLFLOW_REGISTRY_URI, else the tracking URI"
    )
    experiment: str | None = Field(None, description="default: MLFLOW_EXPERIMENT_NAME, else the campaign's name")
    enabled: bool = Field(True, description="false: runs and models are not recorded")
    every: int | None = Field(
        None,
        ge=1,
        description="steps between two recorded points of a training curve; default: about 200 points a curve. The "
        "last step is always recorded, and the files below the students' `curves` have every step",
    )

    @field_validator("uri")
    @classmethod
    def _uri(cls, value: str | None) -> str | None:
        return value if value in (None, "none") else check_tracking_uri(value)

    @field_validator("registry_uri")
    @classmethod
    def _registry_uri(cls, value: str | None) -> str | None:
        return value if value is None else check_tracking_uri(value)

    @field_validator("experiment")
    @classmethod
    def _experiment(cls, value: str | None) -> str | None:
        return value if value is None else check_experiment_name(value)
