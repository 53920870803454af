"""One reading for a whole column of labels: names or indices, and what means no label; two readings are refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_distill.config import SnapshotConfig
from ray_distill.config.snapshot import Columns
from ray_distill.errors import SnapshotError
from ray_distill.snapshots import SPLITS, Snapshot, open_snapshot, take_snapshot
from ray_distill.snapshots.label_reading.reading import ClassNames, LabelRules, Reading, read_labels

STARS = ("1", "2", "3", "4", "5")
WORDS = ("ham", "spam", "other")


def read(values: dict[str, int], classes: tuple[str, ...] | None = None, **columns: Any) -> Reading:
    known = None if classes is None else ClassNames(names=classes)
    settings = Columns(label="label", **columns)
    return read_labels(values, LabelRules(known=known, columns=settings, section="snapshot.columns", tolerance=0.01))


def counts(*values: str, rows: int = 50) -> dict[str, int]:
    return dict.fromkeys(values, rows)


def test_labels_that_count_from_0_beside_names_that_count_from_1_are_refused() -> None:
    """Both readings are shown, with the rows that neither a name nor an index explains, and the field that decides."""
    with pytest.raises(SnapshotError) as error:
        read({"0": 62, "1": 62, "2": 54, "3": 57, "4": 65}, STARS)
    said = str(error.value)
    assert "As indices into the classes, counted from 0: 0 → '1', 1 → '2'" in said
    assert "As names of classes: 1 → '1', 2 → '2', 3 → '3', 4 → '4', not a class: '0' (62 rows)" in said
    assert "Set snapshot.columns.label_values to indices or to names" in said


def test_the_setting_decides_between_two_readings() -> None:
    """As indices all five classes keep their rows; as names the label 0 is not a class."""
    values = counts("0", "1", "2", "3", "4")
    indices = read(values, STARS, label_values="indices")
    assert indices.kind == "indices" and indices.names == {str(at): STARS[at] for at in range(5)}
    names = read(values, STARS, label_values="names")
    assert names.names == {name: name for name in STARS[:4]} and names.unknown == {"0": 50}


@pytest.mark.parametrize(
    ("values", "classes", "kind", "names"),
    [
        (counts("1", "2", "5"), STARS, "names", {"1": "1", "2": "2", "5": "5"}),
        (counts("0", "2"), WORDS, "indices", {"0": "ham", "2": "other"}),
        (counts("0", "1", "9"), tuple("0123456789"), "names", {"0": "0", "1": "1", "9": "9"}),
        (counts("1", "0"), ("1", "0"), "names", {"1": "1", "0": "0"}),
        ({"ham": 900, "spam": 90, "1": 2}, WORDS, "names", {"ham": "ham", "spam": "spam"}),
        ({"0": 900, "1": 90, "ham": 2}, WORDS, "indices", {"0": "ham", "1": "spam"}),
        ({**counts("1", "2", "3", "4", "5", rows=2000), "0": 3}, STARS, "names", {name: name for name in STARS}),
    ],
)
def test_a_column_is_read_as_names_or_as_indices_whole(
    values: dict[str, int], classes: tuple[str, ...], kind: str, names: dict[str, str]
) -> None:
    """The rows decide; values of the other kind are not classes, never a class of another name."""
    found = read(values, classes)
    assert (found.kind, found.names) == (kind, names)
    assert found.unknown == {value: rows for value, rows in values.items() if value not in names}


def test_indices_that_count_from_1_are_refused() -> None:
    """The last would be no class, and every other label wrong by one."""
    with pytest.raises(SnapshotError, match=r"count from 1, and indices count from 0 \(0 is 'ham'\): subtract 1"):
        read({"1": 900, "2": 90, "3": 1}, WORDS)


@pytest.mark.parametrize(
    ("values", "classes", "unlabelled"),
    [
        (counts("-1", "0", "1"), None, {"-1": 50}),
        (counts("-1", "0", "1"), ("a", "b"), {"-1": 50}),
        (counts("-100", "0", "1"), None, {"-100": 50}),
        (counts("-1.0", "0.0", "1.0", "nan"), None, {"-1.0": 50, "nan": 50}),
        (counts("NaN", "<NA>", "null", "#N/A", "spam"), None, {"NaN": 50, "<NA>": 50, "null": 50, "#N/A": 50}),
        (counts("None", "NA", "spam"), WORDS, {"None": 50, "NA": 50}),
        (counts("", "  ", "spam"), None, {}),
        (counts("-1"), None, {"-1": 50}),
    ],
)
def test_what_means_no_label_is_unlabelled_and_listed(
    values: dict[str, int], classes: tuple[str, ...] | None, unlabelled: dict[str, int]
) -> None:
    """-1 beside 0, 1, 2…, losses' -100, and what software writes for missing values; blanks need no mention."""
    found = read(values, classes)
    assert found.unlabelled == unlabelled and not found.unknown
    assert set(found.names) == {value for value in values if value.strip()} - unlabelled.keys()


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (counts("-2", "-1", "0", "1", "2"), None),
        (counts("-1", "0", "1"), ("-1", "0", "1")),
        (counts("null", "none", "one"), ("null", "none", "one")),
        (counts("true", "false"), None),
    ],
)
def test_what_is_a_class_by_name_is_never_unlabelled(values: dict[str, int], classes: tuple[str, ...] | None) -> None:
    """A scale below zero, or a class that is listed."""
    assert read(values, classes).names == {value: value for value in values}


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        (counts("-1", "1"), None, r"the only labels are -1 and 1.*snapshot.classes: \[\"-1\", \"1\"\]"),
        (counts("-1", "1"), ("no", "yes"), r"the only labels are -1 and 1.*label_missing: \[\"-1\"\]"),
        (counts("None", "spam"), None, r"'None' is a class, or means no label.*label_missing: \[\"None\"\]"),
        (counts("Spam", "spam"), None, r"'Spam' and 'spam' differ only by case"),
        (counts("1", "01"), None, r"'01' and '1' differ only by case, blanks or leading zeros"),
        (counts("New  York", "New York"), None, r"differ only by case, blanks"),
        (counts("1.0", "1", "one"), None, r"'1' and '1.0' are one number in two spellings"),
        (counts("True", "False", "1"), None, r"'1' and 'True' both mean true"),
        (counts("yes", "no", "Y"), None, r"'Y' and 'yes' both mean true"),
        (counts("spam", "sp\u0430m"), None, r"print alike, and differ in characters \('spam', 'sp\\u0430m'\)"),
        (counts("spam", "spam\u200b"), None, r"print alike, and differ in characters"),
        (counts("\uff11\uff12", "12a", "12"), None, r"differ only by case, blanks or leading zeros"),
        (counts("0", "1", "ham", "spam"), None, r"integers 0 to 1, and as many are words \('ham', 'spam'\)"),
        (counts("1.23457E+18", "3"), None, r"1.23457E\+18 is a number that has lost its last digits"),
        ({f"0.{at}": 1 for at in range(1, 99)}, None, r"different fractions such as .* are numbers to predict"),
    ],
)
def test_values_with_two_meanings_are_refused(
    values: dict[str, int], classes: tuple[str, ...] | None, message: str
) -> None:
    """The message has the way out: the field that decides, or the list of classes."""
    with pytest.raises(SnapshotError, match=message):
        read(values, classes)


def test_the_settings_are_the_way_out() -> None:
    """Listed values are unlabelled, nothing else is; an empty list makes every value a label."""
    assert read(counts("None", "-1", "spam"), label_missing=["None", "-1"]).unlabelled == {"-1": 50, "None": 50}
    assert read(counts("None", "-1", "spam"), label_missing=[]).found == ("-1", "None", "spam")
    assert read(counts("-1", "1"), label_missing=["-1"]).found == ("1",)
    assert read(counts("Spam", "spam"), ("Spam", "spam")).unknown == {}


@pytest.mark.parametrize(
    ("values", "classes", "names"),
    [
        (counts("1.0", "2", "3.00"), None, {"1.0": "1", "2": "2", "3.00": "3"}),
        (counts("1.0", "2.5"), None, {"1.0": "1", "2.5": "2.5"}),
        (counts("1.0", "beta"), None, {"1.0": "1.0", "beta": "beta"}),
        (counts("1", "2"), ("1.0", "2.0"), {"1": "1.0", "2": "2.0"}),
        (counts("True", "false", "FALSE"), None, {"True": "true", "false": "false", "FALSE": "false"}),
        (counts("true"), ("False", "True"), {"true": "True"}),
        (counts(" ham", "spam\t"), WORDS, {" ham": "ham", "spam\t": "spam"}),
        (counts(" ham", "ham"), (" ham", "ham"), {" ham": " ham", "ham": "ham"}),
        (counts("007", "010"), None, {"007": "007", "010": "010"}),
        (counts("cafe\u0301", "caf\u00e9"), None, {"cafe\u0301": "caf\u00e9", "caf\u00e9": "caf\u00e9"}),
        (counts("caf\u00e9"), ("cafe\u0301",), {"caf\u00e9": "cafe\u0301"}),
        (counts("0", "1", "many"), None, {"0": "0", "1": "1", "many": "many"}),
        (counts("y", "n", "x"), None, {"y": "y", "n": "n", "x": "x"}),
    ],
)
def test_spellings_of_one_value_are_one_class(
    values: dict[str, int], classes: tuple[str, ...] | None, names: dict[str, str]
) -> None:
    """Numbers, truth values and blanks, as formats write them; ids with leading zeros stay texts."""
    found = read(values, classes)
    assert found.names == names and not found.unknown
    assert found.respelt == {value: name for value, name in names.items() if value != name}


def take(path: Path, values: list[Any], kind: pa.DataType | None = None, **config: Any) -> Snapshot:
    """Write 300 rows with the values in turn in the format of the suffix, and freeze them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts, labels = [f"row {at}" for at in range(300)], [values[at % len(values)] for at in range(300)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts, "label": pa.array(labels, kind)}), path)
    elif path.suffix == ".jsonl":
        rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    settings = SnapshotConfig.model_validate({"source": str(path), "columns": {"label": "label"}, **config})
    return open_snapshot(take_snapshot(settings, input_column="text", seed=0, url=str(path.parent / "snapshots")))


@pytest.mark.parametrize(
    "sources",
    [
        [
            ("a.parquet", [0, 1, None], pa.int64()),
            ("b.parquet", [0.0, 1.0, float("nan")], pa.float64()),
            ("c.parquet", ["0", "1.0", ""], pa.string()),
            ("d.parquet", [0, 1, -1], pa.int8()),
            ("e.jsonl", [0, 1, None], None),
            ("f.jsonl", [0.0, 1.0, None], None),
            ("g.jsonl", ["0", 1, "nan"], None),
            ("h.csv", ["0.0", "1.0", ""], None),
            ("i.csv", ["0", "1", "-1"], None),
        ],
        [
            ("a.parquet", [True, False, None], pa.bool_()),
            ("b.jsonl", [True, False, None], None),
            ("c.csv", ["True", "False", ""], None),
            ("d.csv", ["TRUE", "FALSE", "NULL"], None),
        ],
    ],
)
def test_all_formats_have_one_reading(tmp_path: Path, sources: list[tuple[str, list[Any], pa.DataType | None]]) -> None:
    """The same labels are the same snapshot, however a format writes numbers, truth values and missing ones."""
    found = {name: take(tmp_path / name[0] / name, values, kind).ref.fingerprint for name, values, kind in sources}
    assert len(set(found.values())) == 1, found


def test_minus_one_costs_no_row_and_stands_in_the_summary(tmp_path: Path) -> None:
    """Two thirds of the rows are kept without a label; classes are counted."""
    snapshot = take(tmp_path / "a.parquet", [0, 1, -1, -1, -1, -1], classes=("politics", "sport"))
    rows = [row for split in SPLITS for row in snapshot.read(split).to_pylist()]
    assert len(rows) == 300 and sum(row["label"] is None for row in rows) == 200
    assert "2 classes: politics (50), sport (50)" in snapshot.summary()
    assert "labels are indices into the classes, counted from 0" in snapshot.summary()
    assert "read as unlabelled: '-1' (200 rows)" in snapshot.summary()


def test_values_that_are_not_a_class_are_named_with_what_they_need(tmp_path: Path) -> None:
    """In the refusal and, below the limit, in the summary; long values, which may be private, are shortened."""
    values = ["ham", "spam", "Spam", "hamm", "x" * 99]
    with pytest.raises(SnapshotError) as error:
        take(tmp_path / "a" / "a.jsonl", values, classes=WORDS)
    said = str(error.value)
    assert "snapshot.columns.label: not among the 3 classes of snapshot.classes ('ham', 'spam', 'other')" in said
    assert "'Spam' (60 rows), 'spam' but for case" in said and "'hamm' (60 rows), near 'ham'" in said
    assert "xxx…'" in said and "x" * 41 not in said and "label_missing: ['Spam', 'hamm'" in said
    kept = take(tmp_path / "b" / "a.jsonl", values, classes=WORDS, max_bad_fraction=0.7)
    assert "not a class: 'Spam' (60 rows), 'hamm' (60 rows)" in kept.summary()
    assert "no labelled row: other" in kept.summary()
    unlabelled = {"label": "label", "label_missing": ["Spam", "hamm", "x" * 99]}
    assert take(tmp_path / "c" / "a.jsonl", values, classes=WORDS, columns=unlabelled).manifest.rows.kept == 300


def test_rows_of_other_classes_can_be_kept_without_their_label(tmp_path: Path) -> None:
    """No row is lost however many there are, and the values are listed all the same."""
    columns = {"label": "label", "label_unknown": "unlabelled"}
    found = take(tmp_path / "a.jsonl", ["ham", "wood", "wood"], classes=WORDS, columns=columns)
    rows = [row for split in SPLITS for row in found.read(split).to_pylist()]
    assert len(rows) == 300 and sum(row["label"] is None for row in rows) == 200
    assert "not a class: 'wood' (200 rows)" in found.summary()
    assert found.manifest.labels_read[0].unknown == {"wood": 200}


def test_ids_without_their_leading_zeros_are_named(tmp_path: Path) -> None:
    """Software that reads ids as numbers drops the zeros."""
    with pytest.raises(SnapshotError, match=r"'12' \(150 rows\), '0012' without its leading zeros"):
        take(tmp_path / "a.parquet", [7, 12], classes=("0007", "0012"))
