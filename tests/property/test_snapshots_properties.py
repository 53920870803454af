"""Snapshots of any rows: order and files do not matter, splits hold still, nothing is lost."""

import csv
import io
import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_distill.config import Columns, SnapshotConfig
from ray_distill.snapshots import SPLITS, SnapshotManifest, merge, open_snapshot, take_snapshot
from ray_distill.snapshots.identity import row_ids
from ray_distill.snapshots.label_reading.class_sets import merge_sets, read_sets
from ray_distill.snapshots.label_reading.names import label_index
from ray_distill.snapshots.label_reading.reading import ClassNames, LabelRules
from ray_distill.snapshots.manifest import Truth
from ray_distill.snapshots.rows import Rows
from ray_distill.snapshots.sources.columns import InputColumn
from ray_distill.snapshots.sources.csv_source import _read_records, _read_whole, _record
from ray_distill.snapshots.sources.label_columns import to_classes
from ray_distill.snapshots.sources.read import read_rows
from ray_distill.snapshots.sources.resolve import match_sources

Row = dict[str, Any]

#: Rows that fill every split under seed 0, so that the drawn ones alone decide what differs.
FILL = [{"text": f"row {i}", "label": "x", "user": f"user {i}"} for i in range(150)]
COLUMNS = {"label": "label", "group": "user", "slices": ["locale"]}
SHARES = {"train": 0.4, "validation": 0.2, "calibration": 0.2, "test": 0.2}

texts = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(["row 1", "row 2", "a", "b", ""])
names = st.none() | st.sampled_from(["x", "y", "z", "1"])
rows = st.lists(
    st.fixed_dictionaries({"text": st.none() | texts}, optional={"label": names, "user": names, "locale": names}),
    max_size=30,
)
whole = settings(max_examples=15, deadline=None)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A snapshot read back: its manifest, and its rows by split."""

    manifest: SnapshotManifest
    rows: dict[str, list[Row]]

    @property
    def split_of(self) -> dict[str, str]:
        return {row["text"]: split for split, found in self.rows.items() for row in found}


def take(files: list[list[Row]], by: str = "id", truth: Truth = "class", **config: Any) -> Taken:
    """Take a snapshot of JSON Lines files with these rows, and of `FILL`."""
    label: dict[str, Any] = {"label": ["x"]} if truth == "classes" else {}
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate([*files, [{**row, **label, "locale": "en"} for row in FILL]]):
            lines = "".join(json.dumps(row, ensure_ascii=number % 2 == 0) + "\n" for row in content)
            Path(folder, f"{number:03}.jsonl").write_text(lines, encoding="utf-8")
        config = {"columns": COLUMNS, "splits": {**SHARES, "by": by}, "max_bad_fraction": 1, "shard_rows": 50, **config}
        source = SnapshotConfig(source=folder, **config)
        ref = take_snapshot(source, input_column="text", seed=0, url=f"memory:/{folder}", truth=truth)
    snapshot = open_snapshot(ref)
    # The digest of the quarantine covers the places of its rows, which are in other files.
    manifest = snapshot.manifest.with_changes(quarantine="")
    taken = Taken(manifest=manifest, rows={split: snapshot.read(split).to_pylist() for split in SPLITS})
    fsspec.filesystem("memory").rm(folder, recursive=True)
    return taken


@whole
@given(rows, st.randoms(), st.sampled_from(["id", "group"]), st.sampled_from(["majority", "drop", "unlabel"]))
def test_order_and_files_do_not_matter(drawn: list[Row], random: Any, by: str, policy: str) -> None:
    """The same rows, shuffled and spread over other files, are the same snapshot, byte for byte."""
    one = take([drawn], by, conflicts=policy)
    shuffled = list(drawn)
    random.shuffle(shuffled)
    cut = random.randint(0, len(shuffled))
    other = take([shuffled[:cut], [], shuffled[cut:]], by, conflicts=policy)
    assert one == other


#: Sets of classes, 0/1 vectors, and values that are neither.
sets = st.none() | st.lists(st.sampled_from(["x", "y", "z", 0, 1, 2, True, False, None, "w", 1.0]), max_size=3) | names
set_rows = st.lists(
    st.fixed_dictionaries({"text": st.sampled_from(["row 1", "a", "b", "c"]), "label": sets}), max_size=30
)


@whole
@given(set_rows, st.randoms(), st.sampled_from(["majority", "drop", "unlabel"]), st.integers(1, 400))
def test_sets_depend_neither_on_order_nor_on_files_nor_on_blocks(
    drawn: list[Row], random: Any, policy: str, block: int
) -> None:
    """The same sets, in another order, other files and blocks of other sizes, are the same snapshot."""
    config = {"conflicts": policy, "classes": ("x", "y", "z"), "truth": "classes"}
    one = take([drawn], **config)
    shuffled = random.sample(drawn, len(drawn))
    cut = random.randint(0, len(shuffled))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_distill.snapshots.sources.json_source._PIECE_BYTES", block)
        other = take([shuffled[:cut], [], shuffled[cut:]], **config)
    assert one == other
    found = [row["label"] for rows in one.rows.values() for row in rows if row["label"] is not None]
    assert all(label == sorted(set(label)) and set(label) <= {0, 1, 2} for label in found)
    splits = one.manifest.splits.values()
    for index, name in enumerate("xyz"):
        assert sum(split.classes[name] for split in splits) == sum(index in label for label in found)


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4) | st.none(), max_size=12),
    st.sampled_from(["numbers", "flags", "names", "indices"]),
)
def test_each_form_of_a_set_has_the_same_indices(vectors: list[list[int] | None], form: str) -> None:
    """Vectors, names and indices of the same classes become the same sets."""
    classes = ("d", "a", "c", "b")
    wanted = [None if vector is None else [i for i, on in enumerate(vector) if on] for vector in vectors]
    written: list[Any] = {
        "numbers": vectors,
        "flags": [None if vector is None else [bool(on) for on in vector] for vector in vectors],
        "names": [None if found is None else [classes[i] for i in reversed(found)] for found in wanted],
        "indices": [None if found is None else found[::-1] for found in wanted],
    }[form]
    column = pa.chunked_array([pa.array(written, pa.list_(pa.string()) if form == "names" else None)])
    labels, why = to_classes(column, "label")
    rows = Rows(
        table=pa.table({"label": labels}),
        why=why,
        source=np.zeros(len(why), dtype=np.int32),
        record=np.arange(len(why), dtype=np.int64),
    )
    rules = LabelRules(known=ClassNames(names=classes), columns=Columns(), section="snapshot.columns", tolerance=0)
    rows, _ = read_sets(rows, rules)
    ids = row_ids(pa.chunked_array([pa.array([str(i) for i in range(len(why))], pa.large_string())]), "text")
    copies = merge.gather_copies(ids)
    merged, conflicts = merge_sets(copies, rows.table.column("label").combine_chunks(), classes, "majority")
    assert not rows.why.any() and not len(conflicts)
    assert merged.to_pylist() == [wanted[position] for position in copies.first]


@whole
@given(rows, rows)
def test_more_rows_move_no_row_to_another_split(drawn: list[Row], more: list[Row]) -> None:
    """By id, every row of the smaller snapshot is in the same split of the larger one."""
    before, after = take([drawn]).split_of, take([drawn, more]).split_of
    assert before.items() <= after.items()


@whole
@given(rows, rows)
def test_more_rows_move_no_group_to_another_split(drawn: list[Row], more: list[Row]) -> None:
    """By group, a row moves only if the new rows are further copies of it; and no group is ever in two splits."""
    before, after = take([drawn], "group"), take([drawn, more], "group")
    alone = set(before.split_of) - {row["text"] for row in more}
    assert all(after.split_of[text] == before.split_of[text] for text in alone)
    found = {(row["group"], split) for split, found in after.rows.items() for row in found if row["group"] is not None}
    assert len(found) == len({group for group, _ in found})


@whole
@given(rows, rows, st.sampled_from(["majority", "first", "drop", "unlabel"]))
def test_every_row_is_accounted_for(drawn: list[Row], seen: list[Row], policy: str) -> None:
    """read = kept + merged + dropped + excluded + quarantined, and the counts say how many copies there were."""
    with tempfile.TemporaryDirectory() as folder:
        exclude = Path(folder, "seen.jsonl")
        exclude.write_text("".join(json.dumps(row) + "\n" for row in [*seen, {"text": "never seen"}]))
        snapshot = take([drawn], conflicts=policy, classes=("x", "y"), exclude=(str(exclude),))
    counts = snapshot.manifest.rows
    assert counts.read == len(drawn) + len(FILL)
    assert counts.read == counts.kept + counts.merged + counts.dropped + counts.excluded + counts.quarantined
    assert counts.quarantined == sum(snapshot.manifest.quarantined.values())
    found = {row["text"]: row["count"] for split in snapshot.rows.values() for row in split}
    assert sum(found.values()) == counts.kept + counts.merged and len(found) == counts.kept
    usable = Counter(
        row["text"] for row in [*drawn, *FILL] if (row["text"] or "").strip() and row.get("label") in (None, "x", "y")
    )
    assert all(usable[text] == count for text, count in found.items())
    assert not set(found) & {row["text"] for row in seen}


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([None, "x", "y", "z"])), max_size=40),
    st.sampled_from(["majority", "first", "drop", "unlabel"]),
)
def test_labels_merge_as_the_plain_rule_says(drawn: list[tuple[str, str | None]], policy: str) -> None:
    """The vectorised merge equals a loop over the rows."""
    classes = ("z", "x", "y")
    column = pa.chunked_array([pa.array([text for text, _ in drawn], pa.large_string())])
    labels = label_index(pa.array([label for _, label in drawn], pa.large_string()), classes)
    copies = merge.gather_copies(row_ids(column, "text"))
    merged, conflicts = merge.merge_labels(copies, labels, classes, policy)
    for run, position in enumerate(copies.first):
        votes = Counter(label for text, label in drawn if text == drawn[position][0] and label is not None)
        assert copies.counts[run] == sum(text == drawn[position][0] for text, _ in drawn)
        assert (run in conflicts) == (len(votes) > 1)
        first = next((label for text, label in drawn if text == drawn[position][0] and label is not None), None)
        expected = first if policy == "first" else min(votes, key=lambda name: (-votes[name], name), default=None)
        expected = None if policy == "unlabel" and len(votes) > 1 else expected
        assert (classes[merged[run]] if merged[run] >= 0 else None) == expected


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.none() | st.sets(st.sampled_from(["x", "y", "z"])).map(list)), max_size=40
    ),
    st.sampled_from(["majority", "first", "drop", "unlabel"]),
)
def test_sets_merge_as_the_plain_rule_says(drawn: list[tuple[str, list[str] | None]], policy: str) -> None:
    """As for one class, by whole sets: a tie is won by the set whose sorted names come first."""
    classes = ("z", "x", "y")
    column = pa.chunked_array([pa.array([text for text, _ in drawn], pa.large_string())])
    labels = pa.array([label for _, label in drawn], pa.large_list(pa.large_string()))
    copies = merge.gather_copies(row_ids(column, "text"))
    merged, conflicts = merge_sets(copies, labels, classes, policy)
    for run, position in enumerate(copies.first):
        same = [tuple(sorted(label)) for text, label in drawn if text == drawn[position][0] and label is not None]
        votes = Counter(same)
        assert (run in conflicts) == (len(votes) > 1)
        first = same[0] if same else None
        expected = first if policy == "first" else min(votes, key=lambda names: (-votes[names], names), default=None)
        expected = None if policy == "unlabel" and len(votes) > 1 else expected
        found = merged[run].as_py()
        assert found == (None if expected is None else sorted(classes.index(name) for name in expected))


@given(st.lists(st.tuples(st.text(max_size=8), st.sampled_from(["x", '"', "", "é,\r\n"])), max_size=12))
def test_both_ways_to_read_csv_agree(records: list[tuple[str, str]]) -> None:
    """What any CSV writer makes of any texts is read alike by Arrow and record by record."""
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerows([("text", "label"), *((text.replace("\0", ""), label) for text, label in records)])
    data = sink.getvalue().encode("utf-8", "replace")
    wanted = {"text": "text", "label": "label"}
    header, start = _record(data, 0)
    assert header == [b"text", b"label"]
    slow = _read_records(data, start, mapping=wanted, header=header, source=0)
    assert not slow.why.any()
    fast = _read_whole(data, wanted, 2)
    assert fast is not None and fast.to_pydict() == slow.table.to_pydict()


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=4)
)


@given(st.lists(scalars, min_size=1, max_size=8))
def test_both_ways_to_read_json_agree(values: list[Any]) -> None:
    """Labels of any JSON type have the same text whether Arrow reads the lines or they are read one by one."""
    lines = [json.dumps({"text": "a", "label": value}) for value in values]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.jsonl").write_text("\n".join(lines))
        Path(folder, "b.jsonl").write_text("\n".join(["{", *lines]))
        found = read_rows(match_sources([folder], "auto"), {"text": "text", "label": "label"}, InputColumn(name="text"))
    labels = found.filter(found.why == 0).table.column("label").to_pylist()
    assert len(labels) == 2 * len(values) and labels[: len(values)] == labels[len(values) :]


@given(st.lists(st.sampled_from([b'{"text": "a"}', b'{"text": "b", "label": 1}', b"{", b"\xff", b"", b"  ", b"[]"])))
def test_json_lines_are_all_read_or_marked(lines: list[bytes]) -> None:
    """Whatever stands between good lines, each line that is not blank is one row: usable or in quarantine."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.jsonl").write_bytes(b"\n".join([b'{"text": "start", "label": null}', *lines]))
        found = read_rows(match_sources([folder], "auto"), {"text": "text", "label": "label"}, InputColumn(name="text"))
    expected = [line for line in lines if line.strip()]
    bad = [not line.startswith(b'{"') for line in expected]
    assert (found.why[1:] != 0).tolist() == bad
    assert found.record.tolist() == list(range(1, len(expected) + 2))
