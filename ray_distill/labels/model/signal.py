"""A teacher's answer as plain numpy: named parts, aligned with the requested row ids.

Each part is ragged: a row has positions or vectors (one for a classifier, one a token for a language model), and a
position has entries (the classes that are stored).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.errors import LabelError
from ray_distill.labels.model.columns import Columns, constant, flat, lists, shared
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.ragged import RaggedArray, owner

#: Name of the part with distributions over classes.
DISTRIBUTIONS = "distributions"

#: Beginning of the names of the parts with hidden states: ``hidden.<layer>``.
HIDDEN = "hidden."

#: Rows, and why they cannot be stored.
Invalid = tuple[npt.NDArray[np.int64], str]


@dataclass(frozen=True, kw_only=True)
class Vectors(RaggedArray):
    """Vectors of rows: hidden states of one layer.

    There is one a row where they are pooled, else one a token.

    ``values`` are float32 ``[N, D]``.
    """

    def to_columns(self, extra: int = 0) -> Columns:
        """Return lists of numbers, one a row, and ``extra`` empty ones."""
        width, count = self.values.shape[1], self.rows + extra
        values = lists(self.values.reshape(-1).astype(np.float32), self.offsets * width, extra)
        return {"values": values, "width": constant(width, count)}

    @classmethod
    def from_columns(cls, columns: Columns) -> "Vectors":
        """Rebuild from `to_columns`' form."""
        values, offsets = flat(columns, "values", np.float32)
        width = int(shared(columns, "width", 0))
        return cls(offsets=offsets // max(width, 1), values=values.reshape(-1, width) if width else no_vectors())

    def invalid_rows(self) -> list[Invalid]:
        """Return the rows that cannot be stored, with the reason."""
        bad = ~np.isfinite(self.values).all(axis=1)
        return [(np.unique(owner(self.offsets)[bad]), "NaN or infinite")]


#: A part of a signal: ``rows, take, concat, to_columns, from_columns, invalid_rows``.
Part = Distributions | Vectors

#: Kinds of parts, by the name that tables and manifests have for them. Another kind is a class and a line here.
KINDS: dict[str, type[Distributions] | type[Vectors]] = {"distributions": Distributions, "vectors": Vectors}


@dataclass(frozen=True, kw_only=True)
class Signal:
    """All parts of a teacher's answer for some rows, each with the same rows in the same order."""

    parts: Mapping[str, Part] = field(default_factory=dict)
    """Parts by name: `DISTRIBUTIONS`, and ``hidden.<layer>`` with layers counted from 0 (the embeddings) as in
    transformers' ``hidden_states``."""

    @property
    def rows(self) -> int:
        """Number of rows; 0 without parts."""
        return next((part.rows for part in self.parts.values()), 0)

    @property
    def distributions(self) -> Distributions:
        """The part `DISTRIBUTIONS`.

        Raises:
            LabelError: the signal has none.
        """
        part = self.parts.get(DISTRIBUTIONS)
        if not isinstance(part, Distributions):
            raise LabelError(f"the signal has no distributions, only {', '.join(self.parts) or 'nothing'}")
        return part

    @property
    def hidden(self) -> dict[int, Vectors]:
        """Hidden states by layer, ascending."""
        found = {layer_of(name): part for name, part in self.parts.items() if isinstance(part, Vectors)}
        return dict(sorted(found.items()))

    def take(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> "Signal":
        """Return the given rows, in the given order."""
        return self._each(lambda part: part.take(rows))

    def with_parts(self, parts: Mapping[str, Part]) -> "Signal":
        """Return this signal with other or further parts."""
        return Signal(parts={**self.parts, **parts})

    def _each(self, change: Callable[[Part], Part]) -> "Signal":
        return Signal(parts={name: change(part) for name, part in self.parts.items()})


def signal_of(distributions: Distributions | None = None, hidden: Mapping[int, Vectors] | None = None) -> Signal:
    """Return the signal that has these distributions, and hidden states by layer."""
    parts: dict[str, Part] = {} if distributions is None else {DISTRIBUTIONS: distributions}
    return Signal(parts={**parts, **{hidden_part(layer): states for layer, states in (hidden or {}).items()}})


def hidden_part(layer: int) -> str:
    """Return the name of the part with a layer's hidden states."""
    return f"{HIDDEN}{layer}"


def layer_of(name: str) -> int:
    """Return the layer whose hidden states a part contains."""
    return int(name.removeprefix(HIDDEN))


def concat_signals(signals: Sequence[Signal]) -> Signal:
    """Return the rows of several signals, one after the other; those without rows are left out.

    Raises:
        LabelError: they have different parts, classes or temperatures.
    """
    full = [signal for signal in signals if signal.rows] or list(signals[:1])
    if len(full) < 2:
        return full[0] if full else Signal()
    if len({tuple(sorted(signal.parts)) for signal in full}) > 1:
        raise LabelError("signals with different parts cannot be joined; all must have the same layers")
    return Signal(parts={name: _concat(name, [signal.parts[name] for signal in full]) for name in full[0].parts})


def _concat(name: str, parts: Sequence[Any]) -> Part:
    if isinstance(parts[0], Vectors):
        widths = {part.values.shape[1] for part in parts if len(part.values)}
        if len(widths) > 1:
            raise LabelError(f"vectors of different widths cannot be joined in {name}: {sorted(widths)}")
    joined: Part = type(parts[0]).concat(parts)
    return joined


def signal_columns(signal: Signal, extra: int = 0) -> dict[str, pa.Array]:
    """Return a signal as columns ``<part>.<column>``, each part with its ``kind``.

    ``extra`` empty rows follow.
    """
    names = {kind: name for name, kind in KINDS.items()}
    columns: dict[str, pa.Array] = {}
    for name, part in signal.parts.items():
        columns[f"{name}.kind"] = constant(names[type(part)], part.rows + extra)
        columns |= {f"{name}.{key}": column for key, column in part.to_columns(extra).items()}
    return columns


def signal_from_columns(columns: Columns) -> Signal:
    """Rebuild a signal from `signal_columns`' form; other columns are ignored.

    Raises:
        LabelError: rows of different tasks or teachers were mixed.
    """
    names = [name.removesuffix(".kind") for name in columns if name.endswith(".kind")]
    return Signal(parts={name: _part(name, columns) for name in names})


def _part(name: str, columns: Columns) -> Part:
    own = {key.removeprefix(f"{name}."): column for key, column in columns.items() if key.startswith(f"{name}.")}
    default = "vectors" if name.startswith(HIDDEN) else "distributions"  # a table without rows has no kinds in it
    found: Part = KINDS[shared(own, "kind", default)].from_columns(own)
    return found


def no_vectors(width: int = 0) -> npt.NDArray[np.float32]:
    """Return ``[0, width]``."""
    return np.empty((0, width), dtype=np.float32)
