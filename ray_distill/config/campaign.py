"""A whole campaign, from traffic to verdict."""

from typing import Any, Literal

from pydantic import Field, field_validator

from ray_distill.config.judge import CostConfig, DriftConfig, EvaluationConfig, GateConfig, TrackingConfig
from ray_distill.config.labels import LabelsConfig
from ray_distill.config.section import NOT_DECIDING, OUTPUT, Section
from ray_distill.config.sequences import SequencesConfig
from ray_distill.config.snapshot import SnapshotConfig
from ray_distill.config.student import StudentConfig
from ray_distill.config.sweep import SweepConfig
from ray_distill.fingerprint import fingerprint
from ray_distill.redact import lasting


class PlanConfig(Section):
    """The probe, the error that is acceptable, and how often the labels will be used."""

    rows: int = Field(512, ge=8, description="rows that the teacher labels for the forecast, at most")
    seconds: float = Field(60, gt=0, description="seconds the teacher is timed for, at most")
    target_nats: float = Field(1e-3, gt=0, description="KL from the teacher that a stored form may lose, mean nats")
    students: int = Field(1, ge=1, description="students to be trained from the labels")
    epochs: float | None = Field(
        None, gt=0, le=1e6, description="passes over the training rows a student; default: student.training.epochs"
    )


class Campaign(Section):
    """A whole campaign, from traffic to verdict."""

    campaign: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    task: str = Field(min_length=1, description="a name of the catalogue of tasks, or package.module:object")
    seed: int = Field(0, ge=0, lt=2**63)
    output: str | None = Field(
        None, description="folder or URL of all artifacts; default: ./distill/<campaign>", json_schema_extra=OUTPUT
    )
    snapshot: SnapshotConfig
    sequences: SequencesConfig | None = Field(None, description="what the teacher writes; default: nothing")
    labels: LabelsConfig
    student: StudentConfig = StudentConfig()
    # A sweep decides which students are compared, not what one of them becomes: its own key adds it.
    sweep: SweepConfig | None = Field(
        None,
        description="students that `ray-distill sweep` compares, or auto; default: none",
        json_schema_extra=NOT_DECIDING,
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    # Reports that are made from these are computed anew by every command.
    drift: DriftConfig = Field(DriftConfig(), json_schema_extra=NOT_DECIDING)
    cost: CostConfig = Field(CostConfig(), json_schema_extra=NOT_DECIDING)
    plan: PlanConfig = Field(PlanConfig(), json_schema_extra=NOT_DECIDING)
    tracking: TrackingConfig = Field(TrackingConfig(), json_schema_extra=NOT_DECIDING)

    @field_validator("sweep", mode="before", json_schema_input_type=SweepConfig | Literal["auto"] | None)
    @classmethod
    def _preset(cls, value: Any) -> Any:
        return {"preset": "auto"} if value == "auto" else value

    @property
    def output_url(self) -> str:
        """Folder or URL under which every artifact of the campaign is written."""
        return (self.output or f"distill/{self.campaign}").rstrip("/")

    @property
    def store_url(self) -> str:
        """URL of the label store."""
        return (self.labels.store or f"{self.output_url}/labels").rstrip("/")

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the whole configuration, without secrets."""
        return fingerprint(lasting(self.model_dump(mode="json", by_alias=True)))
