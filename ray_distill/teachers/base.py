"""The teacher protocol: one method, one answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.labels.model.signal import Signal
from ray_distill.tasks.encoded import Encoded


@dataclass(frozen=True, kw_only=True)
class LabelRequest:
    """Request the stored form of distributions, and hidden states, from a teacher."""

    estimator: str
    k: int
    temperatures: tuple[float, ...]
    layers: tuple[int, ...] = ()
    """Non-negative layer indices."""
    pool: str = "mean"
    draws: int = 0
    """Draws a position (``sampled``, ``hybrid``)."""
    exponent: float = 1.0
    """They come from ``p^exponent``."""
    seed: int = 0
    """Seed of the draws, together with the row's id."""
    bases: Mapping[int, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = field(default_factory=dict)
    """Mean ``[D]`` and PCA basis ``[D, r]`` by layer; states are returned as ``(h - mean) @ basis``, ``[N, r]``."""


class Known(Protocol):
    """Identify a teacher; some engines can do it without loading the model."""

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of all that decides an answer: weights, dtype, processor, engine."""

    @property
    def space(self) -> AnswerSpace:
        """Return the classes that it answers with, in the order of its class ids."""


class Identity(Known, Protocol):
    """Describe a teacher for the manifest of a store."""

    @property
    def tokens(self) -> str | None:
        """Fingerprint of a language model's tokens alone; None for others."""

    @property
    def states(self) -> int:
        """Number of its hidden states; 0 where it shows none."""

    @property
    def describe(self) -> Mapping[str, Any]:
        """Facts for people."""


class Teacher(Known, Protocol):
    """Something that labels encoded rows. It refuses, before the start, what it cannot give."""

    def answer(self, encoded: Encoded, request: LabelRequest) -> Signal:
        """Answer for every row of ``encoded``, in order, as one batch.

        Rows whose answer is not finite come back as they are: the store's writer puts them in quarantine.

        Raises:
            TeacherRefused: the signal cannot be given.
        """
