"""Which sequences are kept, and of every other one why not: pure functions over a table."""

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

#: Scores ``[N]`` of the rows of a table with `SCORED`; NaN for what is to be dropped.
Scorer = Callable[[pa.Table], Sequence[float]]
#: What a scorer sees: ``input`` is the row that the prompt came from, with its own answer where it has one.
SCORED = ("row_id", "candidate", "input", "text", "tokens", "log_probability")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What became of N sequences."""

    kept: Mask
    """``[N]``"""
    scores: Floats
    """``[N]``: NaN where the scorer was not asked, or there is none."""
    dropped: dict[str, int]
    """Sequences by the first reason that held, the reasons in the order in which they are looked at."""


def select(table: pa.Table, settings: SequencesConfig, scorer: Scorer | None = None) -> Selection:
    """Decide about every sequence.

    Args:
        table: sequences with `SCORED`, and ``ended``; ordered by prompt, then by candidate.
        settings: what is kept.
        scorer: the function that ``settings.filters.scorer`` names.

    Raises:
        LabelError: the scorer returned something else than a number a row.
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
    """``[N]``: a token, in nats."""
    found: Floats = table["log_probability"].to_numpy() / np.maximum(table["tokens"].to_numpy(), 1)
    return found


def _plain(table: pa.Table, filters: SequenceFilters) -> Iterator[tuple[str, Mask]]:
    """Reasons that need no scorer, in their order, and whom they hold for."""
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
            f"sequences.filters.scorer: {name} raised {type(error).__name__}: {error}; it gets a table of "
            f"{', '.join(SCORED)} and must return a number a row"
        ) from error
    if found.shape != (len(table),):
        raise LabelError(
            f"sequences.filters.scorer: {name} returned numbers of shape {list(found.shape)} for "
            f"{len(table)} sequences: expected one a row"
        )
    return found


def _repeats(table: pa.Table, kept: Mask) -> Mask:
    """Kept sequences whose prompt has an equal one before them."""
    seen: set[tuple[bytes, str]] = set()
    bad = np.zeros(len(table), bool)
    for row, pair in enumerate(zip(table["row_id"].to_pylist(), table["text"].to_pylist(), strict=True)):
        bad[row] = kept[row] and pair in seen
        if kept[row]:
            seen.add(pair)
    return bad


def _best(table: pa.Table, kept: Mask, rank: Floats) -> Mask:
    """The first of the highest of each prompt, among those that are kept."""
    best: dict[bytes, int] = {}
    ids = table["row_id"].to_pylist()
    for row in np.flatnonzero(kept).tolist():
        if ids[row] not in best or rank[row] > rank[best[ids[row]]]:
            best[ids[row]] = row
    found = np.zeros(len(table), bool)
    found[list(best.values())] = True
    return found
