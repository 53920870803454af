"""What a teacher's failure is, and which rows are at fault: pure functions, without Ray.

A batch that fails is halved until each failing row stands alone; the others keep their answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Rows = npt.NDArray[np.int64]

#: Of an exception's text in a reason: it may hold data, and every different text is a reason of its own.
REASON_LENGTH = 120


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a batch has no answer."""

    kind: Literal["memory", "raised", "timeout", "died"]
    reason: str
    """As it stands in quarantine when the batch is one row."""
    spent: bool = False
    """Whether the process can answer nothing more."""


@dataclass(frozen=True, kw_only=True)
class Answers(Generic[T]):
    """What became of all batches of a unit."""

    parts: tuple[T, ...]
    """Answers in the order of the rows."""
    failed: dict[int, Failure]
    """By row."""
    halved: int
    """Rows of the smallest batch that a halved one was cut into; 0 if none was halved."""


def answer_halving(batches: Sequence[Rows], answer: Callable[[Rows], T | Failure]) -> Answers[T]:
    """Answer each batch; halve one that fails until every row is answered, or fails alone.

    Args:
        batches: rows, as planned.
        answer: returns the answer of some rows, or why there is none; an exception ends it all.
    """
    parts: list[T] = []
    failed: dict[int, Failure] = {}
    sizes: list[int] = []
    for rows in batches:
        found = answer(rows)
        if not isinstance(found, Failure):
            parts.append(found)
        elif len(rows) == 1:
            failed[int(rows[0])] = found
        else:
            middle = (len(rows) + 1) // 2
            halves = answer_halving([rows[:middle], rows[middle:]], answer)
            parts += halves.parts
            failed |= halves.failed
            sizes.append(halves.halved or len(rows) - middle)
    return Answers(parts=tuple(parts), failed=failed, halved=min(sizes, default=0))


def failure_of(error: Exception) -> Failure:
    """What an exception of the teacher means."""
    if out_of_memory(error):
        return Failure(kind="memory", reason="teacher ran out of memory on this row alone")
    return Failure(kind="raised", reason=f"teacher raised {described(error)}", spent=_poisonous(error))


def described(error: BaseException) -> str:
    """An exception in one short line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:REASON_LENGTH] if lines else 'no message'}"


def timed_out(seconds: float) -> Failure:
    """A row that took too long."""
    return Failure(kind="timeout", spent=True, reason=f"teacher took longer than {seconds:g} s on this row")


def died() -> Failure:
    """A row on which the process ended."""
    return Failure(kind="died", spent=True, reason="the teacher's process died on this row")


def out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may help: memory of the device or of the host ran out."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # Neither the CPU's allocator nor CUDA outside of torch's own has an exception class for it.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("can't allocate memory", "not enough memory", "out of memory", "status_alloc_failed")
    )


def _poisonous(error: BaseException) -> bool:
    """After an error inside a kernel every later call on the device fails."""
    return "CUDA error" in str(error) or "device-side assert" in str(error)
