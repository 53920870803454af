"""Describe kinds of views, and which of them a campaign uses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

#: (inputs, strength in (0, 1], generator) -> input of the view, or None where the inputs allow none. The inputs are the
#: row's, and that of its partner where the kind mixes.
Change = Callable[[Sequence[bytes], float, np.random.Generator], bytes | None]
#: word -> words that may stand in its place, with weights that sum to 1; empty where there are none.
Neighbours = Callable[[str], Sequence[tuple[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of views of one modality."""

    change: Change
    strength: float
    """Strength where a campaign states none."""
    mixes: bool = False
    """A view is made of two rows, so that it has no true label."""
    keeps_label: bool = True
    """A view of one row has its parent's true label; else it has none."""
    automatic: bool = True
    """Whether the kind is used where a campaign names no kinds."""
    of_neighbours: Callable[[Neighbours], Change] | None = None
    """Makes ``change`` of the neighbours of words in the teacher's embeddings, for a kind that needs them; see
    `with_neighbours`."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A kind that a campaign uses, with its strength."""

    name: str
    kind: Kind
    strength: float


def with_neighbours(chosen: Sequence[Chosen], neighbours: Neighbours) -> tuple[Chosen, ...]:
    """Return the kinds, of which those that need neighbours of words have these."""
    return tuple(
        one
        if one.kind.of_neighbours is None
        else replace(one, kind=replace(one.kind, change=one.kind.of_neighbours(neighbours)))
        for one in chosen
    )


def without_neighbours(inputs: Sequence[bytes], strength: float, generator: np.random.Generator) -> bytes | None:
    """Stand for the change of a kind that needs neighbours, until it has them."""
    raise AssertionError("this kind makes no views before `with_neighbours`")
