"""Sets of classes as labels: lists, JSON arrays and vectors become ascending indices; other kinds are refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_distill.config import SnapshotConfig
from ray_distill.errors import SnapshotError
from ray_distill.snapshots import SPLITS, Snapshot, open_snapshot, take_snapshot

CLASSES = ("sport", "art", "war")
#: Sets of names, in any order; null = unknown, [] = none applies.
SETS: list[list[str] | None] = [["war", "sport"], ["art"], [], None, ["sport", "art", "war"]]
INDICES = [[0, 2], [1], [], None, [0, 1, 2]]


def rows_of(labels: list[Any], rows: int = 200) -> list[dict[str, Any]]:
    """So many rows with the labels in turn, each with a text of its own."""
    return [{"text": f"row {i}", "label": labels[i % len(labels)]} for i in range(rows)]


def write(path: Path, rows: list[dict[str, Any]], kind: pa.DataType | None = None) -> Path:
    """Write rows as Parquet, JSON Lines or CSV by the suffix; lists in CSV are JSON arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts, "label": pa.array(labels, kind)}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        fields = ['"' + json.dumps(label).replace('"', '""') + '"' if label is not None else "" for label in labels]
        path.write_text("text,label\n" + "".join(f"{t},{field}\n" for t, field in zip(texts, fields, strict=True)))
    return path


def take(source: Path, truth: str = "classes", **config: Any) -> Snapshot:
    config = {"source": str(source), "columns": {"label": "label"}, "shard_rows": 64, **config}
    checked = SnapshotConfig.model_validate(config)
    folder = source if source.is_dir() else source.parent
    url = str(folder.with_name("snapshots"))
    return open_snapshot(take_snapshot(checked, input_column="text", seed=0, url=url, truth=truth))  # type: ignore[arg-type]


def labels_of(snapshot: Snapshot) -> dict[str, list[int] | None]:
    """Labels by text, over all splits."""
    return {row["text"]: row["label"] for split in SPLITS for row in snapshot.read(split).to_pylist()}


def expected(sets: list[Any], rows: int = 200) -> dict[str, Any]:
    return {row["text"]: row["label"] for row in rows_of(sets, rows)}


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_lists_of_names_become_ascending_indices(tmp_path: Path, suffix: str) -> None:
    """In every format: null stays unknown, [] is a set without a class; the column is list<int32>."""
    snapshot = take(write(tmp_path / "in" / f"a.{suffix}", rows_of(SETS)), classes=CLASSES)
    assert labels_of(snapshot) == expected(INDICES)
    assert snapshot.read("train").schema.field("label").type == pa.list_(pa.int32())
    assert snapshot.manifest.truth == "classes" and snapshot.manifest.columns["label"] == "list<int32>"
    assert snapshot.manifest.quarantined == {}


def test_all_formats_give_one_snapshot(tmp_path: Path) -> None:
    """Equal sets have equal fingerprints, whether they are lists of names, of indices, of marks or JSON texts."""
    marks = [None if found is None else [int(i in found) for i in range(3)] for found in INDICES]
    flags = [None if vector is None else [bool(mark) for mark in vector] for vector in marks]
    variants = {
        "a/a.parquet": (SETS, None),
        "b/a.parquet": (SETS, pa.large_list(pa.dictionary(pa.int32(), pa.string()))),
        "c/a.parquet": ([None if found is None else json.dumps(found) for found in SETS], None),
        "d/a.parquet": (INDICES, pa.list_(pa.int8())),
        "e/a.parquet": (marks, pa.list_(pa.float32())),
        "f/a.parquet": (flags, pa.list_(pa.bool_())),
        "g/a.jsonl": (marks, None),
        "h/a.jsonl": (flags, None),
        "i/a.csv": (marks, None),
        "j/a.jsonl": ([None if found is None else [float(i) for i in found] for found in INDICES], None),
    }
    refs = {
        name: take(write(tmp_path / name, rows_of(labels), kind), classes=CLASSES).ref.fingerprint
        for name, (labels, kind) in variants.items()
    }
    assert len(set(refs.values())) == 1, refs


def test_vectors_may_have_a_fixed_length(tmp_path: Path) -> None:
    """Parquet keeps the length in the type."""
    vectors = rows_of([[0, 1, 1], [0, 0, 0]])
    snapshot = take(write(tmp_path / "in" / "a.parquet", vectors, pa.list_(pa.int8(), 3)), classes=CLASSES)
    assert labels_of(snapshot) == expected([[1, 2], []])


def test_found_classes_are_sorted_as_for_one_class(tmp_path: Path) -> None:
    """Names by letter; numbers as numbers if all are; an empty set adds no name."""
    assert take(write(tmp_path / "a" / "a.jsonl", rows_of(SETS))).classes == ("art", "sport", "war")
    numbers = take(write(tmp_path / "b" / "a.jsonl", rows_of([[10, 9], [2], []])))
    assert numbers.classes == ("2", "9", "10") and labels_of(numbers) == expected([[1, 2], [0], []])


def test_a_row_counts_for_each_of_its_classes(tmp_path: Path) -> None:
    """Labelled rows are those whose set is known, the empty one too."""
    snapshot = take(write(tmp_path / "in" / "a.jsonl", rows_of(SETS)), classes=CLASSES)
    splits = snapshot.manifest.splits.values()
    assert sum(split.labelled for split in splits) == 160 and sum(split.rows for split in splits) == 200
    assert {name: sum(split.classes[name] for split in splits) for name in CLASSES} == {
        "sport": 80,
        "art": 80,
        "war": 80,
    }
    assert "3 classes, a set a row: sport (80), art (80), war (80)" in snapshot.summary()


def test_names_that_are_no_class_and_repeated_ones_cost_the_row(tmp_path: Path) -> None:
    """One bad name makes the row's label unusable, and so does an index among names; the reasons are counted."""
    bad = [["sport", "golf"], ["sport", None], [""], [3], [-1], ["art", "art"], ["art", 1], [["art"]], [{}]]
    rows = [{"text": f"bad {i}", "label": label} for i, label in enumerate(bad)] + rows_of(SETS)
    snapshot = take(write(tmp_path / "in" / "a.jsonl", rows), classes=CLASSES, max_bad_fraction=0.5)
    assert snapshot.manifest.quarantined == {"unknown label": 6, "label is not a list": 2, "label repeated": 1}
    assert labels_of(snapshot) == expected(INDICES)


@pytest.mark.parametrize(
    ("policy", "tie", "clear"),
    [("majority", [1, 2], [0]), ("first", [0], [1, 2]), ("unlabel", None, None), ("drop", "absent", "absent")],
)
def test_copies_with_other_sets_conflict_as_whole_sets(tmp_path: Path, policy: str, tie: Any, clear: Any) -> None:
    """The order of names is no conflict; a tie goes to the set whose names come first; null contradicts nothing."""
    copies = {
        "tie": [None, ["sport"], ["war", "art"]],
        "clear": [["art", "war"], ["sport"], ["sport"]],
        "same": [["war", "art"], ["art", "war"], None],
    }
    rows = [{"text": text, "label": label} for text, labels in copies.items() for label in labels]
    snapshot = take(write(tmp_path / "in" / "a.jsonl", [*rows, *rows_of(SETS)]), classes=CLASSES, conflicts=policy)
    found = labels_of(snapshot)
    assert (found.get("tie", "absent"), found.get("clear", "absent")) == (tie, clear)
    assert found["same"] == [1, 2] and snapshot.manifest.conflicts == 2


def test_a_tie_with_the_empty_set_leaves_the_empty_set(tmp_path: Path) -> None:
    """It has no name, so it comes before all others."""
    rows = [{"text": "tie", "label": label} for label in (["art"], [])]
    found = labels_of(take(write(tmp_path / "in" / "a.jsonl", [*rows, *rows_of(SETS)]), classes=CLASSES))
    assert found["tie"] == []


def test_a_vector_of_another_length_is_quarantined_alone(tmp_path: Path) -> None:
    """The other rows decide that the column has vectors: 0 and 1 are not read as indices then."""
    rows = [{"text": "short", "label": [1, 0]}, {"text": "index", "label": [2]}, {"text": "none", "label": []}]
    snapshot = take(
        write(tmp_path / "in" / "a.jsonl", [*rows, *rows_of([[0, 1, 1], [0, 0, 0], None])]),
        classes=CLASSES,
        max_bad_fraction=0.02,
    )
    assert snapshot.manifest.quarantined == {"unknown label": 3}
    assert labels_of(snapshot) == expected([[1, 2], [], None])


def test_a_vector_among_sets_is_quarantined_alone(tmp_path: Path) -> None:
    """It would be the same class several times as indices."""
    rows = [{"text": "vector", "label": [0, 1, 1]}, *rows_of([[0, 1], [2], []])]
    snapshot = take(write(tmp_path / "in" / "a.jsonl", rows), classes=CLASSES)
    assert snapshot.manifest.quarantined == {"label repeated": 1}
    assert labels_of(snapshot) == expected([[0, 1], [2], []])


def test_two_classes_need_a_row_that_decides_between_vectors_and_indices(tmp_path: Path) -> None:
    """[0, 1] alone may be either; with [1, 1] beside it the column has vectors, with [1] it has indices."""
    two = {"classes": ("a", "b")}
    with pytest.raises(SnapshotError, match="may be a 0/1 vector or a set of indices: write vectors as true"):
        take(write(tmp_path / "a" / "a.jsonl", rows_of([[0, 1], [1, 0], None])), **two)
    vectors = take(write(tmp_path / "b" / "a.jsonl", rows_of([[0, 1], [1, 1]])), **two)
    assert labels_of(vectors) == expected([[1], [0, 1]])
    indices = take(write(tmp_path / "c" / "a.jsonl", rows_of([[0, 1], [1]])), **two)
    assert labels_of(indices) == expected([[0, 1], [1]])
    flags = take(write(tmp_path / "d" / "a.jsonl", rows_of([[False, True], [True, False]])), **two)
    assert labels_of(flags) == expected([[1], [0]])


def test_excluding_the_row_that_decides_changes_no_other_row(tmp_path: Path) -> None:
    """How the column is read is decided by all rows of the sources, before any is left out."""
    (tmp_path / "seen.jsonl").write_text('{"text": "decides"}\n')
    rows = [{"text": "decides", "label": [1, 1]}, *rows_of([[0, 1], [1, 0]])]
    source = write(tmp_path / "in" / "a.jsonl", rows)
    snapshot = take(source, classes=("a", "b"), exclude=(str(tmp_path / "seen.jsonl"),))
    assert labels_of(snapshot) == expected([[1], [0]])


@pytest.mark.parametrize("labels", [[[0, 1], [1, 1]], [[False, True]], [["0"], []]])
def test_vectors_without_classes_are_refused(tmp_path: Path, labels: list[Any]) -> None:
    """The numbers would be taken for names."""
    with pytest.raises(SnapshotError, match=r"list the classes in snapshot\.classes"):
        take(write(tmp_path / "in" / "a.jsonl", rows_of(labels)))


@pytest.mark.parametrize(
    ("name", "labels"),
    [("a.parquet", ["sport", "art"]), ("a.parquet", [1, 2]), ("a.jsonl", ["sport", None]), ("a.jsonl", [1, 2])],
)
def test_one_class_a_row_is_refused_where_sets_are_read(tmp_path: Path, name: str, labels: list[Any]) -> None:
    """A name is never read as a set of one."""
    with pytest.raises(SnapshotError, match="the task reads a set of classes a row: give each row a list, in CSV"):
        take(write(tmp_path / "in" / name, rows_of(labels)), classes=CLASSES)


def test_a_plain_name_among_sets_is_quarantined_alone(tmp_path: Path) -> None:
    """It costs its own row only, under its own reason."""
    rows = [{"text": "plain", "label": "sport"}, *rows_of(SETS)]
    snapshot = take(write(tmp_path / "in" / "a.jsonl", rows), classes=CLASSES)
    assert snapshot.manifest.quarantined == {"label is not a list": 1} and labels_of(snapshot) == expected(INDICES)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_sets_are_refused_where_one_class_is_read(tmp_path: Path, suffix: str) -> None:
    """In every format the sentence says what to do."""
    with pytest.raises(SnapshotError, match=r"the task reads one class a row: set snapshot\.columns\.label to"):
        take(write(tmp_path / "in" / f"a.{suffix}", rows_of([["art", "war"], ["sport"]])), truth="class")


def test_a_task_without_labels_reads_none(tmp_path: Path) -> None:
    """The column is there, without values, whatever the source has."""
    snapshot = take(write(tmp_path / "in" / "a.jsonl", rows_of(["sport", "art"])), truth="none")
    assert set(labels_of(snapshot).values()) == {None} and snapshot.classes == ()
    assert snapshot.read("test").schema.field("label").type == pa.int32() and snapshot.manifest.truth == "none"


def test_source_without_a_label_column_has_unknown_sets(tmp_path: Path) -> None:
    """The type is that of sets."""
    snapshot = take(write(tmp_path / "in" / "a.jsonl", rows_of([None])), columns={}, classes=CLASSES)
    assert set(map(str, labels_of(snapshot).values())) == {"None"} and snapshot.classes == CLASSES
    assert snapshot.read("test").schema.field("label").type == pa.list_(pa.int32())


def test_kinds_of_labels_are_other_snapshots(tmp_path: Path) -> None:
    """Rows without labels have the same content under each kind, and three fingerprints."""
    source = write(tmp_path / "in" / "a.jsonl", rows_of([None]))
    refs = {take(source, truth=truth, classes=CLASSES).ref.fingerprint for truth in ("class", "classes", "none")}
    assert len(refs) == 3


def test_layout_of_the_sources_does_not_matter(tmp_path: Path) -> None:
    """Other files, formats and pieces of the same rows give the same bytes."""
    rows = rows_of([["war", "sport"], ["art"], [], None])
    one = take(write(tmp_path / "one" / "a.jsonl", rows), classes=CLASSES)
    for number, suffix in enumerate(("parquet", "csv", "jsonl", "parquet")):
        write(tmp_path / "many" / "in" / f"{3 - number}.{suffix}", rows[50 * number : 50 * (number + 1)])
    many = take(tmp_path / "many" / "in", classes=CLASSES)
    assert many.ref.fingerprint == one.ref.fingerprint
    for shard in one.shards:
        assert Path(one.ref.url, shard.name).read_bytes() == Path(many.ref.url, shard.name).read_bytes()
        assert many.read_range(shard, 3, 9).equals(many.read_shard(shard).slice(3, 6))
