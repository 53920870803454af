"""What all sections share."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Dtype = Literal["float32", "bfloat16", "float16"]
Pool = Literal["token", "mean", "cls", "last"]


class Section(BaseModel):
    """A frozen section that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
