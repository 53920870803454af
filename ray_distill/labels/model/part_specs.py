"""Describe the parts of a store's signal: content and stored form of each.

A further kind of part is a model here, a class of `signal` and a line in both unions.
"""

import math
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from ray_distill.artifacts import Document
from ray_distill.errors import LabelError
from ray_distill.labels.model.distributions import Family
from ray_distill.labels.model.signal import DISTRIBUTIONS, hidden_part

D = TypeVar("D", bound=Document)

ESTIMATORS = ("dense", "topk", "sampled", "hybrid")
POOLS = ("token", "mean", "cls", "last")
HIDDEN_DTYPES = ("float32", "bfloat16", "float16", "int8", "float8")


class AnswerSpace(Document):
    """All answers that a teacher chooses from: named classes, or tokens that have only a number."""

    size: int
    """Number of classes, V."""
    names: tuple[str, ...] = ()
    """Class names in the order of the teacher's class ids; empty for a vocabulary."""

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        return checked(
            self,
            (len(set(self.names)) == len(self.names), "classes must be distinct"),
            (1 <= self.size < 2**31, f"between 1 and 2^31 classes are needed, found {self.size}"),
            (
                not self.names or len(self.names) == self.size,
                f"there are {len(self.names)} names of {self.size} classes",
            ),
        )


class DistributionsSpec(Document):
    """A part with distributions over the teacher's classes."""

    kind: Literal["distributions"] = "distributions"
    family: Family = "categorical"
    """Whether classes exclude each other, or each is a yes or no of its own."""
    space: AnswerSpace
    estimator: str = "dense"
    k: int = 0
    """Classes stored a position with ``topk``, size of the exact head with ``hybrid``; else 0."""
    draws: int = 0
    """Draws a position with ``sampled`` and ``hybrid``; else 0."""
    exponent: float = 1.0
    """Exponent a of the proposal ``r ∝ p^a`` of the draws."""
    seed: int = 0
    """Seed of the draws, beside the row's id."""
    temperatures: tuple[float, ...] = (1.0,)
    """Temperatures with a stored tail; 1 is among them."""
    codec: tuple[str, int] = ("dense", 2)
    """Name and version of the codec."""
    options: dict[str, Any] = {}
    """Settings of the codec."""

    @property
    def part(self) -> str:
        """Name of the part."""
        return DISTRIBUTIONS

    @property
    def largest_entropy(self) -> float:
        """Largest entropy of a position, nats, where no answer is likelier than another."""
        return math.log(self.space.size) if self.family == "categorical" else math.log(2) * self.space.size

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        size, temperatures = self.space.size, self.temperatures
        return checked(
            self,
            (self.estimator in ESTIMATORS, f"estimator {self.estimator!r} is not one of {', '.join(ESTIMATORS)}"),
            (
                self.estimator not in ("topk", "hybrid") or 1 <= self.k <= size,
                f"k must be between 1 and the {size} classes, found {self.k}",
            ),
            (
                self.estimator not in ("sampled", "hybrid") or (self.draws >= 1 and self.exponent >= 0),
                f"draws must be at least 1 and their exponent at least 0, found {self.draws} and {self.exponent}",
            ),
            (
                1.0 in temperatures and min(temperatures) > 0 and len(set(temperatures)) == len(temperatures),
                f"temperatures must be positive, distinct and contain 1, found {list(temperatures)}",
            ),
            (
                self.family == "categorical" or (self.estimator, self.codec[0]) == ("dense", "dense"),
                f"family {self.family} needs estimator and codec dense, found {self.estimator}, {self.codec[0]}",
            ),
        )


class VectorsSpec(Document):
    """A part with the hidden states of one layer."""

    kind: Literal["vectors"] = "vectors"
    layer: int
    """Index as in ``hidden_states``, counted from 0."""
    pool: str = "mean"
    dtype: str = "bfloat16"
    """Stored type."""
    rank: int = 0
    """Dimensions of the PCA basis that the states are projected on, at most; 0 = not projected."""
    variance: float = 0.0
    """Least share of the variance that the basis keeps, where no rank is configured; 0 = not projected."""

    @property
    def part(self) -> str:
        """Name of the part."""
        return hidden_part(self.layer)

    @property
    def projected(self) -> bool:
        """Whether the states are stored on a PCA basis."""
        return self.rank > 0 or self.variance > 0

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        return checked(
            self,
            (self.layer >= 0, f"hidden layers must be counted from 0, found {self.layer}"),
            (self.pool in POOLS, f"pool {self.pool!r} is not one of {', '.join(POOLS)}"),
            (self.dtype in HIDDEN_DTYPES, f"dtype {self.dtype!r} is not one of {', '.join(HIDDEN_DTYPES)}"),
            (self.rank >= 0 and 0 <= self.variance <= 1, "rank must be at least 0 and variance a share"),
        )


#: The description of one part, by its kind.
PartSpec = Annotated[DistributionsSpec | VectorsSpec, Field(discriminator="kind")]


def checked(document: D, *rules: tuple[bool, str]) -> D:
    """Return a document of the manifest that follows all rules.

    Raises:
        LabelError: names each rule that it breaks.
    """
    wrong = [message for followed, message in rules if not followed]
    if wrong:
        raise LabelError("the label store's manifest is not usable: " + "; ".join(wrong))
    return document
