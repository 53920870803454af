"""Whatever the rows, their order in files and the sizes of chunks: a view is a function of seed, row and partner."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ray_distill.snapshots.augment.draw import PARTNERS, chances, kind_at, partner
from ray_distill.snapshots.augment.kinds import Chosen, with_neighbours
from ray_distill.snapshots.augment.sorted_rows import ids_of
from ray_distill.snapshots.augment.views import ViewMaker, with_followers
from ray_distill.snapshots.identity import row_id
from ray_distill.tasks.inputs.text_views import TEXT_VIEWS

IDS = st.binary(min_size=16, max_size=16)
WORDS = st.sampled_from(["one", "two", "three", "日本", "ไทย", "x-y"])
TEXTS = st.lists(st.lists(WORDS, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=40, unique=True)
NEAR = {"one": [("two", 0.6), ("three", 0.4)], "three": [("one", 1.0)]}
CHOSEN = with_neighbours(
    [Chosen(name=name, kind=kind, strength=kind.strength) for name, kind in sorted(TEXT_VIEWS.items())],
    lambda word: NEAR.get(word, []),
)


def _rows(texts: list[str]) -> pa.Table:
    ids = {row_id(text.encode(), "text"): text for text in texts}
    return pa.table(
        {
            "row_id": pa.array(sorted(ids), pa.binary(16)),
            "text": pa.array([ids[one] for one in sorted(ids)], pa.string()),
            "label": pa.array([len(ids[one]) % 3 for one in sorted(ids)], pa.int32()),
            "count": pa.array([1] * len(ids), pa.int64()),
        }
    )


def _views(rows: pa.Table, cuts: list[int], seed: int, views: int = 3) -> pa.Table:
    bounds = [0, *sorted({cut % len(rows) for cut in cuts} - {0}), len(rows)]
    chunks = [rows.slice(start, stop - start) for start, stop in zip(bounds, bounds[1:], strict=False)]
    maker = ViewMaker(column="text", chosen=CHOSEN, views=views, seed=seed, elsewhere=ids_of(rows)[:0])
    return pa.concat_tables([made for _, made in maker.make(chunks)]).combine_chunks()


@given(TEXTS, st.lists(st.integers(0, 100), max_size=8), st.integers(0, 2**63 - 1))
def test_chunks_do_not_change_views(texts, cuts, seed):
    """One chunk or many: the same views with the same partners, byte for byte; and again."""
    rows = _rows(texts)
    whole = _views(rows, [], seed)
    assert _views(rows, cuts, seed).equals(whole) and _views(rows, [], seed).equals(whole)


@given(TEXTS, st.integers(0, 2**63 - 1), st.integers(0, 39))
def test_a_view_of_one_row_does_not_depend_on_others(texts, seed, left_out):
    """With a row less, the views of the others are the same, except mixes."""
    rows = _rows(texts)
    others = pa.concat_tables([rows.slice(0, left_out % len(rows)), rows.slice(left_out % len(rows) + 1)])
    keys = ["view_parent", "view_number"]
    own = {tuple(row[key] for key in keys): row for row in _views(rows, [], seed).to_pylist()}
    if len(others):
        for row in _views(others, [], seed).to_pylist():
            if row["view_kind"] != "span_mix":
                assert own[tuple(row[key] for key in keys)] == row


@given(TEXTS, st.integers(0, 2**63 - 1))
def test_views_differ_from_their_rows_and_inherit_by_kind(texts, seed):
    """A view has other content than its parent, another row as partner, and no label where there is one."""
    rows = _rows(texts)
    labels = dict(zip(rows["row_id"].to_pylist(), rows["label"].to_pylist(), strict=True))
    for view in _views(rows, [], seed).to_pylist():
        assert view["row_id"] == row_id(view["text"].encode(), "text") != view["view_parent"]
        assert view["text"].strip() and view["view_partner"] != view["view_parent"]
        labelled = view["view_kind"] in ("cut", "word_dropout")
        assert view["label"] == (labels[view["view_parent"]] if labelled else None)
        assert (view["view_partner"] is not None) == (view["view_kind"] == "span_mix")


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(0, 20))
def test_each_chunk_is_followed_by_the_next_rows_cyclically(sizes, most):
    """As many as are needed, or all others, whatever the sizes of the chunks."""
    total, bounds = sum(sizes), np.cumsum([0, *sizes])
    numbers = pa.table({"n": list(range(total))})
    chunks = [numbers.slice(start, size) for start, size in zip(bounds, sizes, strict=False)]
    for (chunk, followers), stop in zip(with_followers(iter(chunks), most), bounds[1:], strict=True):
        found = followers["n"].to_pylist()
        assert found == [int(stop + at) % total for at in range(len(found))] and len(chunk)
        assert len(found) >= min(most, total - 1) and len(found) <= most


@given(
    st.binary(min_size=16, max_size=16), st.integers(0, 63), st.lists(st.binary(min_size=16, max_size=16), min_size=2)
)
def test_a_partner_stays_while_others_come_and_go(own, number, candidates):
    """Only the removal of the partner itself, or a new one that wins, changes it."""
    chosen = candidates[partner(7, own, number, candidates)]
    fewer = [one for one in candidates if one == chosen or one > chosen]
    assert fewer[partner(7, own, number, fewer)] == chosen
    assert kind_at(7, own, number, kinds=3) == (kind_at(7, own, 0, kinds=3) + number) % 3
    assert chances(7, own, number).random() == chances(7, own, number).random() != chances(8, own, number).random()


def test_partners_are_few_enough_to_read_ahead():
    """The number is part of every mix: another one changes stored views."""
    assert PARTNERS == 16
