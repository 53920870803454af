"""Views of train rows: no other split has one, each depends on its own row, and the counts add up."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_distill.config import SnapshotConfig
from ray_distill.snapshots import SPLITS, take_snapshot
from ray_distill.snapshots.augment import sorted_rows
from ray_distill.snapshots.augment.add_views import add_views
from ray_distill.snapshots.augment.draw import PARTNERS
from ray_distill.snapshots.augment.kinds import Chosen, Kind
from ray_distill.snapshots.augment.read_views import views_of, without_views
from ray_distill.snapshots.augment.sorted_rows import ids_of
from ray_distill.snapshots.augment.views import COLUMNS, ELSEWHERE, EQUAL, NO_CHANGE, ViewMaker
from ray_distill.snapshots.identity import row_id
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.tasks.inputs.text_views import TEXT_VIEWS

FOUR = {"train": 0.6, "validation": 0.1, "calibration": 0.1, "test": 0.2}
WORDS = ["red", "green", "blue", "lion", "tiger", "horse", "rose", "tulip", "oak", "stone", "iron", "gold"]


def texts(rows: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [f"{' '.join(generator.choice(WORDS, 8))} {number}" for number in range(rows)]


def take(folder: Path, rows: Sequence[dict[str, Any]], **config: Any) -> Snapshot:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "source.parquet")
    values = {"source": str(folder / "source.parquet"), "columns": {"label": "label"}, "splits": FOUR, **config}
    return open_snapshot(
        take_snapshot(SnapshotConfig(**values), input_column="text", seed=0, url=str(folder / "snapshots"))
    )


def rows_of(inputs: Sequence[str]) -> list[dict[str, Any]]:
    return [{"text": text, "label": "ab"[at % 2] if at % 3 else None} for at, text in enumerate(inputs)]


def kinds(*names: str) -> list[Chosen]:
    return [Chosen(name=name, kind=TEXT_VIEWS[name], strength=TEXT_VIEWS[name].strength) for name in names]


def made_by(change: Any, mixes: bool = False) -> list[Chosen]:
    return [Chosen(name="made", kind=Kind(change=change, strength=1.0, mixes=mixes), strength=1.0)]


def add(parent: Snapshot, chosen: Sequence[Chosen], views: int = 2, seed: int = 0, shard_rows: int = 64) -> Snapshot:
    url = parent.ref.url.rpartition("/")[0]
    return open_snapshot(add_views(parent, chosen, views=views, seed=seed, url=url, shard_rows=shard_rows))


def views_in(snapshot: Snapshot) -> list[dict[str, Any]]:
    return [row for row in snapshot.read("train").to_pylist() if row["view_parent"] is not None]


def by_number(snapshot: Snapshot) -> dict[tuple[bytes, int], tuple[Any, ...]]:
    return {
        (row["view_parent"], row["view_number"]): (row["text"], row["view_kind"], row["view_partner"])
        for row in views_in(snapshot)
    }


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return take(tmp_path_factory.mktemp("parent"), rows_of(texts(300)), shard_rows=50)


def test_train_rows_stay_and_get_views_and_no_other_split_changes(parent: Snapshot) -> None:
    """The other splits have the parent's very files; rows are sorted by id over all shards; ids are the contents'."""
    derived = add(parent, kinds("word_dropout", "cut", "span_mix"))
    assert derived.ref != parent.ref and derived.manifest.derived is not None
    assert derived.manifest.derived["parent"] == parent.ref.fingerprint
    for split in SPLITS[1:]:
        own = [shard for shard in derived.shards if shard.split == split]
        assert own == [shard for shard in parent.shards if shard.split == split]
        assert derived.read(split).equals(parent.read(split))
        assert derived.manifest.splits[split] == parent.manifest.splits[split]
    train = derived.read("train")
    plain = without_views(train)
    assert plain.drop_columns(list(COLUMNS)).equals(parent.read("train"))
    assert 0 < len(train) - len(plain) <= 2 * len(plain)
    ids = train["row_id"].to_pylist()
    assert ids == sorted(set(ids)) and ids == [row_id(text.encode(), "text") for text in train["text"].to_pylist()]
    assert derived.manifest.columns == {field.name: str(field.type) for field in train.schema}


def test_a_view_has_its_parents_columns_and_label_and_a_mix_has_no_label(parent: Snapshot) -> None:
    """Who changes an input slightly keeps its class; of two rows the teacher alone gives the answer."""
    rows = {row["row_id"]: row for row in parent.read("train").to_pylist()}
    found = views_in(add(parent, kinds("word_dropout", "span_mix")))
    assert {row["view_kind"] for row in found} == {"word_dropout", "span_mix"}
    for row in found:
        origin, mixed = rows[row["view_parent"]], row["view_kind"] == "span_mix"
        assert row["label"] == (None if mixed else origin["label"]) and row["count"] == origin["count"]
        assert (row["view_partner"] is not None) == mixed
        if mixed:
            assert row["view_partner"] in rows and row["view_partner"] != row["view_parent"]


def test_a_kind_that_may_change_the_class_gives_no_label(parent: Snapshot) -> None:
    """Such views teach by the teacher's labels alone; they have no partner."""
    kind = Kind(change=lambda inputs, strength, generator: inputs[0] + b" not", strength=1.0, keeps_label=False)
    found = views_in(add(parent, [Chosen(name="negated", kind=kind, strength=1.0)], views=1))
    assert len(found) == parent.manifest.splits["train"].rows
    assert {(row["label"], row["view_partner"]) for row in found} == {(None, None)}


def test_sets_of_classes_are_inherited_as_sets(tmp_path: Path) -> None:
    """The truth of a task with several labels a row, empty sets and unknown ones included."""
    pq.write_table(pa.table({"text": texts(80), "label": [["b", "a"], [], None, ["a"]] * 20}), tmp_path / "in.parquet")
    config = SnapshotConfig(source=str(tmp_path / "in.parquet"), splits=FOUR, columns={"label": "label"})
    parent = open_snapshot(take_snapshot(config, input_column="text", seed=0, url=str(tmp_path), truth="classes"))
    derived, rows = add(parent, kinds("cut", "span_mix")), parent.read("train").to_pylist()
    labels = {row["row_id"]: row["label"] for row in rows}
    for row in views_in(derived):
        assert row["label"] == (labels[row["view_parent"]] if row["view_kind"] == "cut" else None)
    assert derived.manifest.splits["train"].labelled == sum(
        row["label"] is not None for row in derived.read("train").to_pylist()
    )


def test_the_counts_of_the_manifest_are_those_of_the_rows(parent: Snapshot) -> None:
    """Every view that was made is kept or left out for one reason; the split counts rows and views together."""
    derived = add(parent, kinds("word_dropout", "cut", "span_mix"), views=3)
    counts, train = derived.manifest.view_counts, derived.read("train")
    assert counts is not None and counts["rows"] == parent.manifest.splits["train"].rows
    kept = Counter(row["view_kind"] for row in views_in(derived))
    assert counts["kept"] == dict(kept) and counts["views"] == 3 * counts["rows"]
    assert sum(kept.values()) + sum(counts["left_out"].values()) == counts["views"]
    split = derived.manifest.splits["train"]
    assert split.rows == len(train) == counts["rows"] + sum(kept.values())
    assert split.labelled == len(train) - train["label"].null_count == sum(split.classes.values())
    assert f"{sum(kept.values()):,} train rows are views of the other {counts['rows']:,}" in derived.summary()
    assert derived.manifest.rows == parent.manifest.rows and parent.manifest.view_counts is None


def test_shards_and_runs_do_not_change_a_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows in shards of other sizes, sorted in many runs, give the same bytes."""
    chosen = kinds("word_dropout", "cut", "span_mix")
    one = add(take(tmp_path / "a", rows_of(texts(300)), shard_rows=4096), chosen, shard_rows=4096)
    monkeypatch.setattr(sorted_rows, "RUN_BYTES", 1 << 12)
    other = add(take(tmp_path / "b", rows_of(texts(300)), shard_rows=7), chosen, shard_rows=30)
    assert len([shard for shard in other.shards if shard.split == "train"]) > 5
    assert one.read("train").equals(other.read("train"))


def test_a_row_that_is_added_later_changes_no_view_but_mixes_with_it(tmp_path: Path) -> None:
    """Views of one row stay to the byte; of mixes those whose partner is the new row, or made place for it."""
    few, more = texts(300), [*texts(300), *(f"a quite new text of eight words {n}" for n in range(6))]
    chosen = kinds("word_dropout", "cut", "span_mix")
    before = by_number(add(take(tmp_path / "a", rows_of(few)), chosen, views=3))
    after = by_number(add(take(tmp_path / "b", rows_of(more)), chosen, views=3))
    changed = [key for key, view in before.items() if after.get(key) != view]
    assert {key for key in before if before[key][1] != "span_mix"} < set(after) and len(after) > len(before)
    assert len(changed) <= 2 * PARTNERS and {before[key][1] for key in changed} == {"span_mix"}


def test_more_views_contain_the_fewer_and_a_seed_decides(parent: Snapshot) -> None:
    """So that labels of fewer views are used again; and the views of a row take turns in the kinds."""
    chosen = kinds("word_dropout", "cut", "span_mix")
    two, three = by_number(add(parent, chosen)), by_number(add(parent, chosen, views=3))
    assert two.items() <= three.items()
    assert by_number(add(parent, chosen[::-1])) == two != by_number(add(parent, chosen, seed=1))
    for key in {parent for parent, _ in three}:
        turns = [three[key, number][1] for number in range(3) if (key, number) in three]
        assert len(turns) == len(set(turns))


def test_a_view_that_equals_a_row_of_another_split_is_dropped(tmp_path: Path) -> None:
    """No text by which a model is measured can have taught it, not even by chance."""
    inputs = texts(200)
    parent = take(tmp_path, rows_of(inputs))
    split_of = {text: split for split in SPLITS for text in parent.read(split, ["text"])["text"].to_pylist()}
    test = next(text for text in inputs if split_of[text] == "test")
    derived = add(parent, made_by(lambda data, strength, generator: test.encode()))
    assert views_in(derived) == []
    assert derived.manifest.view_counts is not None
    assert derived.manifest.view_counts["left_out"] == {
        "equal to a row of another split": 2 * parent.manifest.splits["train"].rows
    }


def test_equal_views_are_one_and_have_a_label_where_their_parents_agree(tmp_path: Path) -> None:
    """The first by parent and number stays; with other labels beside it, it has none; a row stays what it is."""
    parent = take(tmp_path, [{"text": text, "label": "ab"[len(text) % 2]} for text in texts(120)])
    rows = parent.read("train").to_pylist()
    same = add(parent, made_by(lambda data, strength, generator: b"the same"), views=1)
    (view,) = views_in(same)
    assert view["view_parent"] == min(row["row_id"] for row in rows) and view["label"] is None
    halves = add(parent, made_by(lambda data, strength, generator: b"even" if len(data[0]) % 2 else b"odd"), views=1)
    assert sorted((row["text"], row["label"]) for row in views_in(halves)) == [("even", 1), ("odd", 0)]
    first = rows[0]
    taken = add(parent, made_by(lambda data, strength, generator: first["text"].encode()), views=1)
    assert views_in(taken) == [] and taken.manifest.view_counts is not None
    assert taken.manifest.view_counts["left_out"] == {EQUAL: len(rows) - 1, NO_CHANGE: 1}
    assert without_views(taken.read("train"))["label"].to_pylist() == [row["label"] for row in rows]


def test_rows_without_a_view_are_counted_and_one_row_finds_no_partner(tmp_path: Path) -> None:
    """A kind may decline; a mix of a single train row has nothing to mix with."""
    parent = take(tmp_path, [{"text": text, "label": "a"} for text in texts(60)])
    none = add(parent, made_by(lambda data, strength, generator: None))
    assert views_in(none) == []
    mixed = add(parent, made_by(lambda data, strength, generator: b" ".join(data), mixes=True), views=1)
    assert len(views_in(mixed)) == parent.manifest.splits["train"].rows
    assert all(row["view_partner"] != row["view_parent"] for row in views_in(mixed))
    one = parent.read("train").slice(0, 1)
    chosen = made_by(lambda data, strength, generator: b" ".join(data), mixes=True)
    maker = ViewMaker(column="text", chosen=chosen, views=2, seed=0, elsewhere=ids_of(one)[:0])
    ((rows, views),) = maker.make([one])
    assert (len(rows), len(views), maker.left_out) == (1, 0, {NO_CHANGE: 2, ELSEWHERE: 0})


def test_views_of_rows_are_found_by_parent_and_by_partner(parent: Snapshot) -> None:
    """These rows must not teach, nor may what was made of them."""
    derived = add(parent, kinds("cut", "span_mix"))
    some = np.sort(ids_of(parent.read("train"))[:20])
    chosen = {bytes(one).ljust(16, b"\0") for one in some}
    expected = [row["row_id"] for row in views_in(derived) if {row["view_parent"], row["view_partner"]} & chosen]
    assert [bytes(one).ljust(16, b"\0") for one in views_of(derived, some)] == sorted(expected)
    assert len(views_of(parent, some)) == len(views_of(derived, some[:0])) == 0
    assert any(row["view_partner"] in chosen for row in views_in(derived))


def test_the_same_views_again_are_the_same_snapshot(parent: Snapshot) -> None:
    """What exists is left as it is."""
    derived = add(parent, kinds("cut"))
    modified = {path: path.stat().st_mtime_ns for path in Path(derived.ref.url).rglob("*") if path.is_file()}
    assert add(parent, kinds("cut")).ref == derived.ref
    assert {path: path.stat().st_mtime_ns for path in modified} == modified


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight times the rows take about the same memory: shards, runs and results are bounded."""
    monkeypatch.setattr(sorted_rows, "RUN_BYTES", 1 << 18)
    peaks = []
    for number in (1000, 8000):
        parent = take(
            tmp_path / str(number), rows_of([f"{text} {'x' * 400}" for text in texts(number)]), shard_rows=200
        )
        before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
        pa.set_memory_pool(pool)
        try:
            derived = add(parent, kinds("word_dropout", "span_mix"), shard_rows=200)
        finally:
            pa.set_memory_pool(before)
        assert derived.manifest.splits["train"].rows > 1.2 * number
        peaks.append(pool.max_memory())
    assert peaks[1] < 1.5 * peaks[0]
