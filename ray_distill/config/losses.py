"""Configure the terms of the training loss: weights, and how they change over training."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from ray_distill.config.section import Section

#: ``[share of training, value]``: the value applies from that share of the steps on.
Stage = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(allow_inf_nan=False)]]


class Steps(Section):
    """A step function: ``{step: [[0, 2], [0.5, 1]]}`` is 2, and 1 after half of the training."""

    step: tuple[Stage, ...] = Field(min_length=1)

    @field_validator("step")
    @classmethod
    def _ordered(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        shares = [share for share, _ in value]
        if shares[0] != 0 or any(one >= other for one, other in zip(shares, shares[1:], strict=False)):
            raise ValueError("the shares of training at which a value changes begin with 0 and rise")
        return value


class Schedule(Section):
    """A weight that changes over training: ``{cosine: [1.0, 0.1]}``."""

    linear: tuple[float, float] | None = None
    cosine: tuple[float, float] | None = None
    step: tuple[Stage, ...] | None = Field(None, description="[share of training, value] pairs")

    @field_validator("step")
    @classmethod
    def _ordered(cls, value: tuple[Stage, ...] | None) -> tuple[Stage, ...] | None:
        return None if value is None else Steps(step=value).step

    @property
    def values(self) -> tuple[float, ...]:
        """Return the values between which the weight changes."""
        return self.linear or self.cosine or tuple(value for _, value in self.step or ())

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(v is not None for v in (self.linear, self.cosine, self.step)) != 1:
            raise ValueError("a schedule has exactly one of linear, cosine, step")
        return self


class LossConfig(Section):
    """A term of the training loss: its weight, and the settings of the loss of that name."""

    model_config = ConfigDict(extra="allow")

    weight: float | Schedule = 1.0

    @field_validator("weight")
    @classmethod
    def _not_negative(cls, value: float | Schedule) -> float | Schedule:
        values = [value] if isinstance(value, float) else value.values
        if min(values, default=0) < 0:
            raise ValueError("a loss with a negative weight is maximised: weights are 0 or more")
        return value

    @property
    def ever_counts(self) -> bool:
        """Return whether the weight is above 0 at some step."""
        return (self.weight if isinstance(self.weight, float) else max(self.weight.values, default=0.0)) > 0

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return all settings except the weight, as given; the loss declares the valid ones."""
        return self.model_extra or {}

    @property
    def all_settings(self) -> Mapping[str, Any]:
        """Return the weight and all other settings, as given."""
        return {"weight": self.weight, **self.settings}


def changes(value: Any) -> bool:
    """Return whether a setting of a loss changes over the training."""
    return isinstance(value, Schedule | Steps) or (isinstance(value, Mapping) and set(value) == {"step"})
