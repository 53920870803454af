"""Sources of one's own for test, validation and calibration: labelled rows that never mix with traffic."""

import json
from pathlib import Path
from typing import Any

import pytest

from ray_distill.config import SnapshotConfig
from ray_distill.errors import SnapshotError
from ray_distill.snapshots import SPLITS, Snapshot, describe_sources, open_snapshot, take_snapshot
from ray_distill.snapshots.label_reading.reading import ClassNames
from ray_distill.snapshots.labelled_rows import in_words, labelled_rows

Rows = list[dict[str, Any]]
TRAFFIC: Rows = [{"text": f"row {at}", "user": f"u{at % 40}", "when": at} for at in range(400)]
TEST: Rows = [{"question": f"test {at}", "intent": "ab"[at % 2]} for at in range(50)]
OWN = {"text": "question", "label": "intent"}


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config_of(folder: Path, rows: Rows = TRAFFIC, test: Rows = TEST, **config: Any) -> SnapshotConfig:
    own = {"source": write(folder / "test.jsonl", test), "columns": OWN}
    return SnapshotConfig.model_validate({"source": write(folder / "rows.jsonl", rows), "test": own, **config})


def take(folder: Path, config: SnapshotConfig, **options: Any) -> Snapshot:
    return open_snapshot(take_snapshot(config, input_column="text", seed=0, url=str(folder / "s"), **options))


def texts(snapshot: Snapshot) -> dict[str, set[str]]:
    return {split: set(snapshot.read(split)["text"].to_pylist()) for split in SPLITS}


def test_the_test_split_is_the_source_of_its_own(tmp_path: Path) -> None:
    """All its rows, no other; it has labels though no traffic row has any, and the counts say so."""
    snapshot = take(tmp_path, config_of(tmp_path))
    found = texts(snapshot)
    assert found["test"] == {row["question"] for row in TEST} and snapshot.classes == ("a", "b")
    assert set().union(*(found[name] for name in SPLITS[:3])) == {row["text"] for row in TRAFFIC}
    counts = labelled_rows(snapshot.manifest)
    assert counts["test"].labelled == 50 and counts["test"].classes == {"a": 25, "b": 25}
    assert not any(counts[name].labelled for name in SPLITS[:3])
    assert (
        "50 labelled (a 25, b 25); a source of its own, 0 rows left out elsewhere because of it" in snapshot.summary()
    )
    assert in_words(snapshot.manifest).endswith(", test 50 of 50 (a source of its own)")
    assert snapshot.manifest.own == {"test": 0} and snapshot.manifest.rows.read == 450


def test_only_the_share_of_the_split_goes_to_train(tmp_path: Path) -> None:
    """A row of another split stays where it was without the source of one's own."""
    config = config_of(tmp_path)
    before, after = (texts(take(tmp_path, one)) for one in (config.traffic_alone(), config))
    assert before["validation"] == after["validation"] and before["calibration"] == after["calibration"]
    assert after["train"] == before["train"] | before["test"]


def test_an_input_that_both_have_is_left_out_of_the_traffic(tmp_path: Path) -> None:
    """All copies, whatever their labels: they are counted, and the row's count is that of its own source."""
    rows = [*TRAFFIC, {"text": "test 3"}, {"text": "test 3"}, {"text": "test 4"}]
    snapshot = take(tmp_path, config_of(tmp_path, rows))
    assert snapshot.manifest.own == {"test": 3} and snapshot.manifest.rows.overlapping == 3
    assert set(snapshot.read("test")["count"].to_pylist()) == {1}
    assert "test 3" not in texts(snapshot)["train"]
    counts = snapshot.manifest.rows
    assert counts.read == counts.kept + counts.merged + counts.excluded + counts.dropped + counts.overlapping
    assert "3 left out as rows of another source" in snapshot.summary()


def test_test_keeps_what_validation_has_too(tmp_path: Path) -> None:
    """The later split keeps the row, and calibration may have a source as well."""
    other = [{"text": f"other {at}", "label": "b"} for at in range(30)]
    own = {"source": write(tmp_path / "v.jsonl", [*other, {"text": "test 0", "label": "b"}])}
    columns = {"columns": {"label": "label"}}
    traffic = [{**row, "label": None} for row in TRAFFIC[:-1]] + [{"text": "labelled", "label": "a"}]
    config = config_of(tmp_path, traffic, validation={**own, **columns}, **columns)
    snapshot = take(tmp_path, config)
    found = texts(snapshot)
    assert found["validation"] == {row["text"] for row in other} and "test 0" in found["test"]
    assert snapshot.manifest.own == {"validation": 0, "test": 1}
    assert take(tmp_path, config_of(tmp_path, traffic, calibration=own, **columns)).manifest.own.keys() == {
        "calibration",
        "test",
    }


def test_by_group_no_group_of_the_test_is_elsewhere(tmp_path: Path) -> None:
    """The rows of a user in the test leave the traffic; by time, the newest traffic rows are train rows."""
    test = [{**row, "user": "u7"} for row in TEST]
    config = config_of(tmp_path, test=test, columns={"group": "user"}, splits={"by": "group"})
    own = config.test.model_copy(update={"columns": config.columns.model_copy(update={**OWN, "group": "user"})})  # type: ignore[union-attr]
    snapshot = take(tmp_path, config.model_copy(update={"test": own}))
    assert snapshot.manifest.own == {"test": 10}
    assert "u7" not in set().union(*(snapshot.read(name)["group"].to_pylist() for name in SPLITS[:3]))
    by_time = take(tmp_path, config_of(tmp_path, columns={"time": "when"}, splits={"by": "time"}))
    assert "row 399" in texts(by_time)["train"] and by_time.read("test")["time"].null_count == 50


def test_each_source_has_its_own_reading(tmp_path: Path) -> None:
    """Traffic may have indices and the test names, where the classes are known; else the two cannot agree."""
    traffic = [{**row, "label": at % 2} for at, row in enumerate(TRAFFIC)]
    config = config_of(tmp_path, traffic, columns={"label": "label"})
    with pytest.raises(SnapshotError, match=r"snapshot\.columns\.label has integers and snapshot\.test\.columns"):
        take(tmp_path, config)
    snapshot = take(tmp_path, config, known=ClassNames(names=("b", "a"), origin="the teacher"))
    assert snapshot.classes == ("b", "a")
    assert snapshot.read("train")["label"].null_count == 0
    assert "labels in snapshot.columns.label are indices into the classes" in snapshot.summary()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"columns": {"text": "question"}}, r"snapshot\.test\.columns\.label is not set: set snapshot\.test\.columns"),
        ({}, r"snapshot\.columns\.label is not set: set snapshot\.test\.columns\.label to the column"),
        (
            {"columns": {**OWN, "label": "question2"}},
            r"has no column 'question2' for the label.* Set snapshot\.test\.columns$",
        ),
        ({"columns": {**OWN, "label": "none"}}, r"snapshot\.test: none of the 50 rows has a label in the column"),
        ({"columns": OWN, "source": "missing.jsonl"}, "matches no file"),
    ],
)
def test_a_source_of_ones_own_needs_labels(tmp_path: Path, own: dict[str, Any], message: str) -> None:
    """The message names the field."""
    test = [{**row, "text": row["question"], "none": None} for row in TEST]
    test[0]["none"] = ""
    source = write(tmp_path / "test.jsonl", test)
    values = {"source": write(tmp_path / "rows.jsonl", TRAFFIC), "test": {"source": source, **own}}
    with pytest.raises(SnapshotError, match=message):
        take(tmp_path, SnapshotConfig.model_validate(values))


def test_the_sources_of_splits_count_as_sources(tmp_path: Path) -> None:
    """Another test file is another snapshot, and both are found by their paths, wherever these start."""
    config = config_of(tmp_path)
    assert [item["role"] for item in describe_sources(config)] == ["source", "test"]
    moved = config.with_sources(lambda url: f"/elsewhere/{url}")
    assert moved.test is not None and moved.test.source == (f"/elsewhere/{tmp_path}/test.jsonl",)
    before = take(tmp_path, config).ref.fingerprint
    assert take(tmp_path, config_of(tmp_path, test=TEST[:-1])).ref.fingerprint != before


def test_slices_of_the_report_are_those_of_the_test(tmp_path: Path) -> None:
    """A slice that only one of the sources has is null in the rows of the other."""
    test = [{**row, "locale": "fr"} for row in TEST]
    own = {"source": write(tmp_path / "t.jsonl", test), "columns": {**OWN, "slices": ["locale"]}}
    config = SnapshotConfig.model_validate({"source": write(tmp_path / "rows.jsonl", TRAFFIC), "test": own})
    snapshot = take(tmp_path, config)
    assert config.test_slices == ("locale",)
    assert set(snapshot.read("test")["locale"].to_pylist()) == {"fr"}
    assert snapshot.read("train")["locale"].null_count == len(snapshot.read("train"))
