"""Select the sequences to keep and give a reason for every dropped one; pure functions."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.config import SequenceFilters, SequencesConfig
from ray_distill.errors import LabelError

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

#: Returns the scores ``[N]`` of the rows of a table with the columns `SCORED`; NaN drops a row.
Scorer = Callable[[pa.Table], Sequence[float]]
#: Columns that a scorer receives; ``input`` is the prompt's row, with its own answer if it has one.
SCORED = ("row_id", "candidate", "input", "text", "tokens", "log_probability")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The outcome of the selection among N sequences."""

    kept: Mask
    """``[N]``"""
    scores: Floats
    """``[N]``: NaN if a sequence was not scored."""
    dropped: dict[str, int]
    """Number of dropped sequences by the first reason that applied, in the order of the checks."""


def select(table: pa.Table, settings: SequencesConfig, scorer: Scorer | None = None) -> Selection:
    """Decide for every sequence whether it is kept.

    Args:
        table: sequences with the columns `SCORED` and ``ended``; sorted by prompt, then by candidate.
        settings: filters and selection.
        scorer: the function that ``settings.filters.scorer`` names.

    Raises:
        LabelError: the scorer failed, or did not return one number per row.
    """
    kept, dropped = np.ones(len(table), bool), Counter[str]()

    def drop(reason: str, bad: Mask) -> None:
        now = kept & bad
        kept[now] = False
        dropped[reason] += int(now.sum())

    for reason, bad in _plain(table, settings.filters):
        drop(reason, bad)
    scores = np.full(len(table), np.nan)
    if scorer is not None:
        scores[kept] = _scored(table.filter(pa.array(kept)).select(SCORED), scorer, str(settings.filters.scorer))
        drop("not scored", np.isnan(scores))
    if settings.filters.min_score is not None:
        drop("low score", scores < settings.filters.min_score)
    if settings.filters.dedup:
        drop("duplicate", _repeats(table, kept))
    if settings.keep == "best":
        drop("not the best", ~_best(table, kept, scores if scorer is not None else mean_log_probability(table)))
    return Selection(kept=kept, scores=scores, dropped={name: count for name, count in dropped.items() if count})


def mean_log_probability(table: pa.Table) -> Floats:
    """Return the mean log-probability per token ``[N]``, in nats."""
    found: Floats = table["log_probability"].to_numpy() / np.maximum(table["tokens"].to_numpy(), 1)
    return found


def _plain(table: pa.Table, filters: SequenceFilters) -> Iterator[tuple[str, Mask]]:
    """Yield the reasons that need no scorer, in order, each with the mask of its sequences."""
    tokens = table["tokens"].to_numpy()
    blank = pc.equal(pc.utf8_trim_whitespace(table["text"]), "")
    yield "empty", np.asarray(blank, bool)
    yield "too short", tokens < filters.min_tokens
    if filters.max_tokens is not None:
        yield "too long", tokens > filters.max_tokens
    if filters.ended:
        yield "cut off", ~np.asarray(table["ended"], bool)
    if filters.min_log_probability is not None:
        yield "improbable", mean_log_probability(table) < filters.min_log_probability


def _scored(table: pa.Table, scorer: Scorer, name: str) -> Floats:
    if not len(table):
        return np.zeros(0)
    try:
        found = np.asarray(list(scorer(table)), np.float64)
    except Exception as error:
        raise LabelError(
            f"sequences.filters.scorer: {name} raised {type(error).__name__}: {error}; it receives a table with "
            f"the columns {', '.join(SCORED)} and must return one number per row"
        ) from error
    if found.shape != (len(table),):
        raise LabelError(
            f"sequences.filters.scorer: {name} returned numbers of shape {list(found.shape)} for "
            f"{len(table)} sequences: expected one number per row"
        )
    return found


def _repeats(table: pa.Table, kept: Mask) -> Mask:
    """Return the mask of kept sequences that repeat an earlier one of the same prompt."""
    seen: set[tuple[bytes, str]] = set()
    bad = np.zeros(len(table), bool)
    for row, pair in enumerate(zip(table["row_id"].to_pylist(), table["text"].to_pylist(), strict=True)):
        bad[row] = kept[row] and pair in seen
        if kept[row]:
            seen.add(pair)
    return bad


def _best(table: pa.Table, kept: Mask, rank: Floats) -> Mask:
    """Return the mask of each prompt's best kept sequence; of equal ranks, the first."""
    best: dict[bytes, int] = {}
    ids = table["row_id"].to_pylist()
    for row in np.flatnonzero(kept).tolist():
        if ids[row] not in best or rank[row] > rank[best[ids[row]]]:
            best[ids[row]] = row
    found = np.zeros(len(table), bool)
    found[list(best.values())] = True
    return found
