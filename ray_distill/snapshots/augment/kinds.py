"""Describe kinds of views, and which of them a campaign uses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

#: (inputs, strength in (0, 1], generator) -> input of the view, or None where the inputs allow none. The inputs are the
#: row's, and that of its partner where the kind mixes.
Change = Callable[[Sequence[bytes], float, np.random.Generator], bytes | None]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of views of one modality."""

    change: Change
    strength: float
    """Strength where a campaign states none."""
    mixes: bool = False
    """A view is made of two rows, so that it has no true label; else it has its parent's."""
    automatic: bool = True
    """Whether the kind is used where a campaign names no kinds."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A kind that a campaign uses, with its strength."""

    name: str
    kind: Kind
    strength: float
