"""Classify failures of a teacher, and find the failing rows: pure functions, without Ray.

A batch that fails is halved until each failing row is alone; all other rows keep their answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Rows = npt.NDArray[np.int64]

#: Characters of an exception's text in a reason: the text may contain data, and each different text is a new reason.
REASON_LENGTH = 120


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Reason why a batch has no answer."""

    kind: Literal["memory", "raised", "timeout", "died"]
    reason: str
    """Text that quarantine records when the batch is one row."""
    spent: bool = False
    """Whether the process can answer no further batch."""


@dataclass(frozen=True, kw_only=True)
class Answers(Generic[T]):
    """Answers and failures of all batches of a unit."""

    parts: tuple[T, ...]
    """Answers in the order of the rows."""
    failed: dict[int, Failure]
    """Failures by row."""
    halved: int
    """Rows of the smallest batch after halving; 0 if no batch was halved."""


def answer_halving(batches: Sequence[Rows], answer: Callable[[Rows], T | Failure]) -> Answers[T]:
    """Answer each batch; halve a batch that fails until every row is answered or fails alone.

    Args:
        batches: rows, as planned.
        answer: returns the answer of some rows, or their failure; an exception ends all batches.
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
    """Return the failure that an exception of the teacher means."""
    if out_of_memory(error):
        return Failure(kind="memory", reason="teacher ran out of memory on this row alone")
    return Failure(kind="raised", reason=f"teacher raised {described(error)}", spent=_poisonous(error))


def described(error: BaseException) -> str:
    """Return an exception in one short line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:REASON_LENGTH] if lines else 'no message'}"


def timed_out(seconds: float) -> Failure:
    """Return the failure of a row that took too long."""
    return Failure(kind="timeout", spent=True, reason=f"teacher took longer than {seconds:g} s on this row")


def died() -> Failure:
    """Return the failure of a row on which the process ended."""
    return Failure(kind="died", spent=True, reason="the teacher's process died on this row")


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory of the device or host ran out, so that a smaller batch may help."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # Neither the CPU's allocator nor CUDA outside of torch has an exception class for lack of memory.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("can't allocate memory", "not enough memory", "out of memory", "status_alloc_failed")
    )


def _poisonous(error: BaseException) -> bool:
    """Return whether the error came from a kernel, after which every call on the device fails."""
    return "CUDA error" in str(error) or "device-side assert" in str(error)
