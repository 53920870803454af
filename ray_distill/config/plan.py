"""Configure the forecast of `ray-distill plan`; nothing here changes a label."""

from pydantic import Field

from ray_distill.config.section import Section


class PlanConfig(Section):
    """The probe, the error that is acceptable, and how often the labels will be used."""

    rows: int = Field(512, ge=8, description="rows that the teacher labels for the forecast, at most")
    seconds: float = Field(60, gt=0, description="seconds the teacher is timed for, at most")
    target_nats: float = Field(1e-3, gt=0, description="KL from the teacher that a stored form may lose, mean nats")
    students: int = Field(1, ge=1, description="students to be trained from the labels")
    epochs: float | None = Field(
        None, gt=0, le=1e6, description="passes over the training rows a student; default: student.training.epochs"
    )
