"""Taking and opening snapshots: what is kept, what is counted, what is refused."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import SnapshotConfig
from ray_distill.errors import SnapshotError, StorageError
from ray_distill.fingerprint import fingerprint
from ray_distill.snapshots import SPLITS, Snapshot, open_snapshot, take_snapshot
from ray_distill.snapshots.identity import row_id
from ray_distill.snapshots.rows import Reason
from ray_distill.tasks.inputs.image import check_images
from ray_distill.testing.s3 import s3_server

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def plain(n: int) -> Rows:
    return [{"text": f"row {i}", "label": "abc"[i % 3]} for i in range(n)]


def take(folder: Path, rows: Rows, columns: dict[str, Any] | None = None, seed: int = 0, **config: Any) -> Snapshot:
    config = {"source": write(folder / "source.parquet", rows), "columns": columns or {"label": "label"}, **config}
    ref = take_snapshot(SnapshotConfig(**config), input_column="text", seed=seed, url=str(folder / "snapshots"))
    return open_snapshot(ref)


def kept(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    """All rows by their text, with their split."""
    return {row["text"]: {**row, "split": split} for split in SPLITS for row in snapshot.read(split).to_pylist()}


def test_snapshot_holds_what_it_promises(tmp_path: Path) -> None:
    """Columns and types are the contract's, shards are sorted and counted, the reference finds it again."""
    columns = {"label": "label", "group": "user", "time": "when", "slices": ["locale"]}
    rows = [{**row, "user": i % 7, "when": i, "locale": None if i % 2 else "fr"} for i, row in enumerate(plain(400))]
    snapshot = take(tmp_path, rows, columns, shard_rows=100)
    table = snapshot.read("train")
    assert table.schema.remove_metadata() == pa.schema(
        [
            ("row_id", pa.binary(16)),
            ("text", pa.string()),
            ("label", pa.int32()),
            ("count", pa.int64()),
            ("group", pa.string()),
            ("time", pa.timestamp("us", tz="UTC")),
            ("locale", pa.string()),
        ]
    )
    assert snapshot.manifest.columns == {field.name: str(field.type) for field in table.schema}
    ids = table.column("row_id").to_pylist()
    assert ids == sorted(ids) and ids[0] == row_id(table.column("text")[0].as_py().encode(), "text")
    assert [s.rows for s in snapshot.shards if s.split == "train"][:3] == [100, 100, 100]
    assert sum(s.rows for s in snapshot.shards) == snapshot.manifest.rows.kept == 400
    assert snapshot.read("test", ["label"]).column_names == ["label"]
    assert snapshot.ref.url == f"{tmp_path}/snapshots/{snapshot.ref.fingerprint}"
    assert open_snapshot(SnapshotRef.from_json(snapshot.ref.to_json())) == open_snapshot(snapshot.ref.url) == snapshot
    back = kept(snapshot)["row 6"]
    assert (back["label"], back["group"], back["time"].timestamp(), back["locale"]) == (0, "6", 6.0, "fr")
    totals = [snapshot.manifest.splits[name] for name in SPLITS]
    assert (
        sum(s.weight for s in totals)
        == sum(s.labelled for s in totals)
        == sum(n for s in totals for n in s.classes.values())
        == 400
    )


def test_duplicates_merge_and_labels_win_over_none(tmp_path: Path) -> None:
    """Three copies are one row of count 3; an unlabelled copy contradicts nothing."""
    snapshot = take(tmp_path, [*plain(300), {"text": "row 4", "label": None}, {"text": "row 4", "label": "b"}])
    assert kept(snapshot)["row 4"]["count"] == 3 and kept(snapshot)["row 4"]["label"] == 1
    assert (snapshot.manifest.rows.merged, snapshot.manifest.conflicts) == (2, 0)
    assert sum(counts.weight for counts in snapshot.manifest.splits.values()) == 302


@pytest.mark.parametrize(
    ("policy", "tie", "clear"),
    [("majority", "a", "b"), ("first", "c", "c"), ("unlabel", None, None), ("drop", "absent", "absent")],
)
def test_conflicts_follow_the_policy(tmp_path: Path, policy: str, tie: str | None, clear: str | None) -> None:
    """Contradicting labels are counted, and resolved as configured; a tie goes to the first by name."""
    rows = [*plain(300), *({"text": "tie", "label": x} for x in "ca"), *({"text": "clear", "label": x} for x in "cbb")]
    snapshot = take(tmp_path, rows, conflicts=policy, classes=("c", "b", "a"))
    found = kept(snapshot)
    for text, expected in (("tie", tie), ("clear", clear)):
        label = found[text]["label"] if text in found else "absent"
        assert (snapshot.classes[label] if isinstance(label, int) else label) == expected
    assert snapshot.manifest.conflicts == 2
    assert snapshot.manifest.rows.dropped == (5 if policy == "drop" else 0)


def test_classes_are_kept_by_name(tmp_path: Path) -> None:
    """Found names are sorted, numbers as numbers; a given list keeps its order, and takes indices."""
    numbers = [{"text": f"{i}", "label": i % 11} for i in range(300)]
    assert take(tmp_path, numbers).classes == tuple(str(i) for i in range(11))
    snapshot = take(tmp_path, [{**row, "label": row["label"] % 2} for row in numbers], classes=("yes", "no"))
    assert snapshot.classes == ("yes", "no") and kept(snapshot)["1"]["label"] == 1
    assert take(tmp_path, numbers, {"label": None}).classes == ()


def test_quarantine_names_place_and_reason_but_not_content(tmp_path: Path) -> None:
    """Bad rows are written apart, counted by reason, and are in no split."""
    bad = [{"text": None, "label": "a"}, {"text": " \n", "label": "a"}, {"text": "secret", "label": "z"}]
    snapshot = take(tmp_path, [*bad, *plain(300)], classes=("a", "b", "c"), max_bad_fraction=0.01)
    assert snapshot.manifest.quarantined == {"missing text": 2, "unknown label": 1}
    source = str(tmp_path / "source.parquet")
    assert snapshot.read_quarantine().to_pylist() == [
        {"source": source, "row": 1, "reason": "missing text"},
        {"source": source, "row": 2, "reason": "missing text"},
        {"source": source, "row": 3, "reason": "unknown label"},
    ]
    assert snapshot.manifest.rows.read == 303 and "secret" not in kept(snapshot)
    assert "quarantine: 2 missing text" in snapshot.summary() and "303 rows read: 300 kept" in snapshot.summary()


def test_too_many_bad_rows_stop_before_anything_is_written(tmp_path: Path) -> None:
    """The error says how many of how many, why, and where the first ones are."""
    rows = [*plain(95), *({"text": None, "label": "a"} for _ in range(5))]
    with pytest.raises(
        SnapshotError,
        match=r"5 of 100 rows of the source cannot be used \(5\.0%; max_bad_fraction "
        r"allows 1\.0%\): 5 missing text\. First: .*source\.parquet row 96 \(",
    ):
        take(tmp_path, rows)
    assert not (tmp_path / "snapshots").exists()


def test_excluded_rows_are_left_out_by_content(tmp_path: Path) -> None:
    """Rows of the teacher's training data go, whatever their file, label or order; they are counted."""
    seen = write(tmp_path / "seen.parquet", [{"text": f"row {i}"} for i in range(99, -1, -1)])
    snapshot = take(tmp_path, [*plain(400), *plain(10)], exclude=(seen,))
    assert snapshot.manifest.rows.excluded == 110 and snapshot.manifest.rows.kept == 300
    assert not {f"row {i}" for i in range(100)} & set(kept(snapshot))
    with pytest.raises(SnapshotError, match="no row is left: 100 read, 0 unusable, 100 excluded"):
        take(tmp_path, plain(100), exclude=(seen,))
    broken = write(tmp_path / "seen.parquet", [{"text": None}])
    with pytest.raises(SnapshotError, match="1 of 1 rows of the sources to exclude"):
        take(tmp_path, plain(100), exclude=(broken,))


def test_groups_stay_together_and_shared_inputs_go_to_the_earliest_split(tmp_path: Path) -> None:
    """No group is in two splits; an input of several groups is in the earliest of their splits, under that group."""
    rows = [{"text": f"{user} says {i}", "user": f"user {user:02}"} for user in range(60) for i in range(5)]
    rows += [{"text": "hello", "user": f"user {user:02}"} for user in range(60)]
    rows += [{"text": "alone", "user": None}]
    shares = {"train": 0.4, "validation": 0.2, "calibration": 0.2, "test": 0.2, "by": "group"}
    snapshot = take(tmp_path, rows, {"group": "user"}, splits=shares)
    found = kept(snapshot)
    splits: dict[str, set[str]] = {}
    for row in found.values():
        splits.setdefault(row["group"], set()).add(row["split"])
    assert all(len(where) == 1 for group, where in splits.items() if group is not None)
    assert found["hello"]["split"] == "train" and found["hello"]["count"] == 60
    assert splits[found["hello"]["group"]] == {"train"}
    assert found["alone"]["group"] is None and snapshot.manifest.groups_crossing == 1


def test_time_puts_the_newest_rows_into_test(tmp_path: Path) -> None:
    """Rows are cut by time at the shares; copies count from their earliest time; no time is no split."""
    rows = [{"text": f"{i}", "when": (i * 37) % 200} for i in range(200)]
    rows += [{"text": "0", "when": 500}, {"text": "none", "when": None}, {"text": "tie", "when": 199}]
    shares = {"train": 0.5, "validation": 0.2, "calibration": 0.1, "test": 0.2, "by": "time"}
    snapshot = take(tmp_path, rows, {"time": "when"}, splits=shares)
    found = kept(snapshot)
    order = [found[row["text"]]["split"] for row in sorted(rows[:200], key=lambda row: row["when"])]
    assert order == sorted(order, key=SPLITS.index)
    assert Counter(row["split"] for row in found.values()) == {
        "train": 100,
        "validation": 41,
        "calibration": 20,
        "test": 40,
    }
    assert found["0"]["split"] == "train" and snapshot.manifest.quarantined == {"missing time": 1}


def test_empty_split_is_refused_with_the_counts(tmp_path: Path) -> None:
    """Five rows cannot fill four splits; the error says what each has and what to change."""
    with pytest.raises(SnapshotError, match=r"no row fell into the split .*train \d+ \(share 0\.85\).*Give more rows"):
        take(tmp_path, plain(5))


def test_empty_splits_can_be_allowed(tmp_path: Path) -> None:
    """Where nothing is trained on the rows, five are enough; empty splits have no shard and no weight."""
    settings = SnapshotConfig(source=write(tmp_path / "source.parquet", plain(5)), columns={"label": "label"})  # type: ignore[arg-type]
    url = str(tmp_path / "snapshots")
    found = open_snapshot(take_snapshot(settings, input_column="text", seed=0, url=url, empty_splits=True))
    assert sum(split.rows for split in found.manifest.splits.values()) == 5
    empty = [name for name, split in found.manifest.splits.items() if not split.rows]
    assert empty and not {shard.split for shard in found.shards} & set(empty)
    assert all(found.manifest.splits[name].weight == 0 for name in empty)


def test_same_content_is_the_same_snapshot_and_is_not_rewritten(tmp_path: Path) -> None:
    """Taking it again, from other files in another order, touches no file and returns the same reference."""
    rows = [*plain(300), *plain(20)]
    first = take(tmp_path, rows)
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(first.ref.url).rglob("*") if path.is_file()
    }
    write(tmp_path / "2.parquet", rows[:170])
    write(tmp_path / "1.parquet", rows[170:][::-1])
    assert take(tmp_path, rows, source=f"{tmp_path}/[12].parquet").ref == first.ref
    assert before == {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(first.ref.url).rglob("*") if path.is_file()
    }
    other = take(tmp_path / "snapshots", rows)
    for shard in first.shards:
        assert Path(first.ref.url, shard.name).read_bytes() == Path(other.ref.url, shard.name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"classes": ("c", "b", "a")},
        {"shard_rows": 50},
        {"conflicts": "drop"},
        {"splits": {"train": 0.84, "validation": 0.06, "calibration": 0.05, "test": 0.05}},
    ],
)
def test_what_matters_changes_the_fingerprint(tmp_path: Path, change: dict[str, Any]) -> None:
    """Another seed, order of classes, policy, share or sharding is another snapshot."""
    assert take(tmp_path, plain(300), **change).ref.fingerprint != take(tmp_path, plain(300)).ref.fingerprint


def test_interrupted_snapshot_is_invisible_and_can_be_taken_again(tmp_path: Path) -> None:
    """Where writing fails after the shards, there is no snapshot; once mended, the next attempt succeeds."""
    whole = take(tmp_path, plain(300))
    folder = tmp_path / "snapshots" / whole.ref.fingerprint
    (folder / "snapshot.json").unlink()
    (folder / "quarantine.parquet").unlink()
    (folder / "quarantine.parquet" / "in the way").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"quarantine\.parquet"):
        take(tmp_path, plain(300))
    with pytest.raises(SnapshotError, match=r"has no snapshot\.json, so it is not a snapshot"):
        open_snapshot(whole.ref)
    (folder / "quarantine.parquet" / "in the way").rmdir()
    (folder / "quarantine.parquet").rmdir()
    assert take(tmp_path, plain(300)) == whole


def test_damaged_shard_is_named_and_not_read(tmp_path: Path) -> None:
    """One flipped bit in a shard is found by its digest; the others still read."""
    snapshot = take(tmp_path, plain(300), shard_rows=100)
    shard = snapshot.shard("data/train-00001.parquet")
    path = Path(snapshot.ref.url, shard.name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(SnapshotError, match=r"train-00001\.parquet is damaged: its digest is sha256:"):
        snapshot.read("train")
    assert len(snapshot.read_shard(snapshot.shard("data/train-00000.parquet"))) == 100


def test_manifest_of_another_version_or_content_is_refused(tmp_path: Path) -> None:
    """A later version, an edited count, a cut file and another snapshot's reference each have a clear error."""
    snapshot = take(tmp_path, plain(300))
    path = Path(snapshot.ref.url, "snapshot.json")
    manifest = json.loads(path.read_text())
    for change, message in (
        ({"version": 99}, "is a snapshot of version 99, this release reads 2: upgrade"),
        ({"seed": 5}, "is damaged: its content has the fingerprint"),
        ({"shards": 3}, "is not a snapshot's manifest"),
        ({"colour": 1}, "has no field colour"),
    ):
        path.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(SnapshotError, match=message):
            open_snapshot(snapshot.ref)
    path.write_text(json.dumps(manifest)[:-20])
    with pytest.raises(SnapshotError, match=r"snapshot\.json is damaged: it is not JSON"):
        open_snapshot(snapshot.ref)
    assert take(tmp_path, plain(300)) == snapshot == open_snapshot(snapshot.ref)
    path.write_text(json.dumps(manifest))
    with pytest.raises(SnapshotError, match="the reference has 00"):
        open_snapshot(SnapshotRef(url=snapshot.ref.url, fingerprint="00"))


def test_a_snapshot_of_another_version_is_not_called_damaged(tmp_path: Path) -> None:
    """A version without a field that has a default now: the file is as it was written, its meaning is unknown."""
    snapshot = take(tmp_path, plain(300))
    path = Path(snapshot.ref.url, "snapshot.json")
    older = json.loads(path.read_text())
    del older["fingerprint"], older["own"], older["content_digest"]
    kept = {name: value for name, value in older.items() if name not in ("labels_read", "quarantine")}
    shards = [{name: shard[name] for name in ("name", "split", "rows", "content")} for shard in older["shards"]]
    older["fingerprint"] = fingerprint({**kept, "shards": shards})
    path.write_text(json.dumps(older))
    with pytest.raises(SnapshotError, match="was written by another version of ray-distill.*take it again"):
        open_snapshot(SnapshotRef(url=snapshot.ref.url, fingerprint=older["fingerprint"]))


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    """A split, shard or column that is not there is an error that says what is."""
    snapshot = take(tmp_path, plain(300))
    with pytest.raises(SnapshotError, match="splits are train, validation, calibration, test"):
        snapshot.read("dev")
    with pytest.raises(SnapshotError, match="no shard 'x'"):
        snapshot.shard("x")
    with pytest.raises(SnapshotError, match="no column 'image': it has row_id, text, label, count"):
        snapshot.read("test", ["image"])


@pytest.mark.parametrize(("letters", "groups"), [(20, 2), (1000, 10), (20_000, 200)])
def test_long_inputs_lie_in_small_groups_so_that_a_part_of_a_shard_is_read_as_such(
    tmp_path: Path, letters: int, groups: int
) -> None:
    """600 rows a shard: any range of them is what the whole shard has there, read from few rows more than it asks."""
    rows = [{"text": f"{n:05d}".ljust(letters, "x"), "label": None} for n in range(600 * 2)]
    snapshot = take(
        tmp_path, rows, shard_rows=600, splits={"train": 0.94, "validation": 0.02, "calibration": 0.02, "test": 0.02}
    )
    shard = next(shard for shard in snapshot.shards if shard.rows == 600)
    whole, file = snapshot.read_shard(shard), pq.ParquetFile(f"{snapshot.ref.url}/{shard.name}")
    assert file.num_row_groups == groups
    for start, stop in ((0, 64), (300, 364), (599, 600), (0, 600)):
        assert snapshot.read_range(shard, start, stop).equals(whole.slice(start, stop - start))


def test_images_from_folders(tmp_path: Path) -> None:
    """Encoded bytes are kept as they are; classes are the folders; undecodable files are counted."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 3)).astype(np.uint8)
    for i, values in enumerate(pixels):
        sink = io.BytesIO()
        Image.fromarray(values).save(sink, "PNG")
        path = tmp_path / "images" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sink.getvalue())
    (tmp_path / "images" / "dog" / "bad.png").write_bytes(b"bad")
    config = SnapshotConfig(source=str(tmp_path / "images"))
    ref = take_snapshot(config, input_column="image", binary=True, verify=check_images, seed=0, url=str(tmp_path))
    snapshot = open_snapshot(ref)
    table = snapshot.read("train")
    assert table.schema.field("image").type == pa.large_binary() and snapshot.classes == ("cat", "dog")
    folder = tmp_path / "images"
    for row in table.slice(0, 5).to_pylist():
        files = [path for path in folder.rglob("*.png") if path.read_bytes() == row["image"]]
        assert [path.parent.name for path in files] == [snapshot.classes[row["label"]]]
        assert row["row_id"] == row_id(row["image"], "image")
    assert snapshot.manifest.quarantined == {"undecodable image": 1}


def test_other_files_in_parquet_are_kept_as_they_are(tmp_path: Path) -> None:
    """A modality of the user's own: its column has its own name, and no check beside its own."""
    sounds = [{"audio": f"sound {i}".encode(), "label": "ab"[i % 2]} for i in range(200)]
    source = write(tmp_path / "a.parquet", [{"audio": None, "label": "a"}, {"audio": b"noise", "label": "a"}, *sounds])
    config = SnapshotConfig(source=source, columns={"label": "label"}, max_bad_fraction=0.02)

    def verify(audio: pa.ChunkedArray) -> np.ndarray:
        return np.array([Reason.WRONG_TYPE if value == b"noise" else 0 for value in audio.to_pylist()], np.int8)

    ref = take_snapshot(config, input_column="audio", binary=True, verify=verify, seed=0, url=str(tmp_path / "s"))
    snapshot = open_snapshot(ref)
    found = [row["audio"] for split in SPLITS for row in snapshot.read(split).to_pylist()]
    assert sorted(found) == sorted(row["audio"] for row in sounds)
    assert snapshot.manifest.quarantined == {"missing input": 1, "wrong type": 1}


def test_snapshot_on_an_object_store(tmp_path: Path) -> None:
    """Source and snapshot on S3 give the snapshot that local folders give."""
    local = take(tmp_path, plain(300))
    with s3_server() as bucket:
        fsspec.filesystem("s3").put(str(tmp_path / "source.parquet"), f"{bucket}/in/source.parquet")
        config = SnapshotConfig(source=f"{bucket}/in/*.parquet", columns={"label": "label"})
        ref = take_snapshot(config, input_column="text", seed=0, url=f"{bucket}/out")
        assert ref == SnapshotRef(url=f"{bucket}/out/{local.ref.fingerprint}", fingerprint=local.ref.fingerprint)
        assert kept(open_snapshot(ref)) == kept(local)
        assert take_snapshot(config, input_column="text", seed=0, url=f"{bucket}/out") == ref
