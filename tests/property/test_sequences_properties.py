"""Whatever the filters: every sequence is kept or counted once; whatever the batch: a draw is its own."""

from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ray_distill.config import SequenceFilters, SequencesConfig
from ray_distill.labels.model.rowids import ROW_ID, from_bytes
from ray_distill.sequences.select import mean_log_probability, select
from ray_distill.teachers.draw import independent
from ray_distill.testing.labels import row_id

SEQUENCE = st.tuples(
    st.integers(0, 4),
    st.sampled_from(["", " ", "a", "b", "c d"]),
    st.integers(1, 6),
    st.integers(-40, 0),
    st.booleans(),
)
FILTERS = st.builds(
    SequenceFilters,
    min_tokens=st.integers(1, 2),
    max_tokens=st.none() | st.integers(2, 6),
    ended=st.booleans(),
    min_log_probability=st.none() | st.integers(-9, 0).map(float),
    dedup=st.booleans(),
)


@given(st.lists(SEQUENCE, max_size=25), FILTERS, st.sampled_from(["all", "best"]))
def test_every_sequence_is_kept_or_counted_under_one_reason(rows, filters, keep):
    """The counts add up; what is kept passes each filter; the best is one a prompt, and none of the others beats it."""
    rows = sorted(rows, key=lambda row: row[0])
    prompt, text, tokens, logp, ended = zip(*rows, strict=True) if rows else ((),) * 5
    table = pa.table(
        {
            "row_id": pa.array([row_id(n) for n in prompt], ROW_ID),
            "candidate": pa.array(range(len(rows)), pa.int32()),
            "input": pa.array(["x"] * len(rows), pa.string()),
            "text": pa.array(text, pa.string()),
            "tokens": pa.array(tokens, pa.int32()),
            "log_probability": pa.array(logp, pa.float64()),
            "ended": pa.array(ended, pa.bool_()),
        }
    )
    found = select(table, SequencesConfig(method="sample", candidates=25, keep=keep, filters=filters))
    kept, everything = (
        np.flatnonzero(found.kept),
        select(table, SequencesConfig(method="sample", candidates=25, filters=filters)),
    )
    assert len(kept) + sum(found.dropped.values()) == len(rows)
    mean = mean_log_probability(table)
    for row in kept:
        assert text[row].strip() and tokens[row] >= filters.min_tokens
        assert filters.max_tokens is None or tokens[row] <= filters.max_tokens
        assert ended[row] or not filters.ended
        assert filters.min_log_probability is None or mean[row] >= filters.min_log_probability
    if filters.dedup:
        assert max(Counter((prompt[row], text[row]) for row in kept).values(), default=1) == 1
    if keep == "best":
        best = {prompt[row]: mean[row] for row in kept}
        assert len(best) == len(kept)
        assert best == {n: max(mean[row] for row in np.flatnonzero(everything.kept) if prompt[row] == n) for n in best}
        assert set(best) == {prompt[row] for row in np.flatnonzero(everything.kept)}


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), min_size=1, max_size=12, unique=True),
    st.integers(0, 100),
    st.integers(-(2**63), 2**63 - 1),
    st.randoms(),
)
def test_a_draw_belongs_to_its_prompt_candidate_and_step(pairs, step, seed, random):
    """In another order or slice of a batch each has the number it has alone."""

    def drawn(some):
        ids, candidates = zip(*some, strict=True)
        return dict(
            zip(
                some,
                independent(
                    from_bytes(map(row_id, ids)), np.array(candidates, np.int32), step=step, seed=seed
                ).tolist(),
                strict=True,
            )
        )

    whole, shuffled = drawn(pairs), list(pairs)
    random.shuffle(shuffled)
    assert drawn(shuffled) == whole
    assert all(drawn([pair]) == {pair: whole[pair]} for pair in pairs)
    assert len(set(whole.values())) == len(pairs)
