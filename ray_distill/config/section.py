"""Definitions that all sections share."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Dtype = Literal["float32", "bfloat16", "float16"]
Pool = Literal["token", "mean", "cls", "last"]

#: A temperature of a softmax. Logits over a smaller one overflow; at a greater one all classes are equally likely.
Temperature = Annotated[float, Field(ge=0.01, le=1000, allow_inf_nan=False)]

#: ``json_schema_extra`` of a field on which no result depends: a place, a resource, a limit that only stops a run. See
#: `config.identity`.
NOT_DECIDING: dict[str, JsonValue] = {"decides": False}

#: ``json_schema_extra`` of a field of numbers that may be the word auto.
AUTO: dict[str, JsonValue] = {"auto": True}

#: ``json_schema_extra`` of a field with paths or URLs that a campaign reads, or writes below: see `config.paths`.
INPUT: dict[str, JsonValue] = {"path": "input"}
OUTPUT: dict[str, JsonValue] = {"path": "output", **NOT_DECIDING}


class Section(BaseModel):
    """A frozen section that refuses unknown names, and numbers that are not finite.

    Defaults are validated, so that they have the types of given values: 1.0 for a float, not 1.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, validate_default=True, allow_inf_nan=False
    )
