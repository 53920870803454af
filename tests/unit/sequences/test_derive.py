"""The store of what was written, and the snapshot made of it: every prompt once, every row in its parent's split."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ray_distill.config import SequencesConfig, SnapshotConfig
from ray_distill.errors import CorruptStore, LabelError, SnapshotError
from ray_distill.labels.model.rowids import to_numpy
from ray_distill.sequences.attempts import SCHEMA, ordered, rejected_table
from ray_distill.sequences.derive import COLUMNS, Derived, derive, require_answers
from ray_distill.sequences.generator import Generator
from ray_distill.sequences.store import SequenceStore, create_or_open, prompt_ids
from ray_distill.sequences.units import write_attempt
from ray_distill.snapshots import SPLITS, take_snapshot
from ray_distill.snapshots.pairs import pair_text
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.storage import files, unit_store
from ray_distill.testing.sequences import SPLITS as FOUR_SPLITS
from ray_distill.testing.sequences import FakeAuthor, fake_author, fake_generator, prompts_snapshot, write_all

TEXTS = [*(f"row {n}" for n in range(80)), "bad!"]
BOTH = ("train", "validation")


def _throwing(rows: pa.Table, generator: Generator) -> pa.Table:
    raise AssertionError(f"{len(rows)} prompts were written again")


def _derive(parent: Snapshot, store: SequenceStore, folder: Path, **settings: Any) -> Derived:
    values = {"method": "sample", "candidates": store.manifest.candidates, **settings}
    scored = settings.get("filters", {}).get("scorer") is not None
    return derive(
        parent,
        store,
        SequencesConfig.model_validate(values),
        url=str(folder / "snapshots"),
        shard_rows=16,
        scorer=(lambda table: [float(n) for n in table["tokens"].to_pylist()]) if scored else None,
    )


def _rows(snapshot: Snapshot) -> dict[str, list[dict[str, Any]]]:
    return {split: snapshot.read(split).to_pylist() for split in SPLITS}


@pytest.fixture
def parent(tmp_path: Path) -> Snapshot:
    return prompts_snapshot(tmp_path / "parent", TEXTS, lang=["en", "de", None] * 27, tokens=["user's own"] * 81)


def test_every_sequence_stands_in_its_parents_split_with_its_parents_columns(parent: Snapshot, tmp_path: Path) -> None:
    """Prompt and answer as the text; group, slices and count of the parent; the other splits' rows as they were."""
    store = write_all(str(tmp_path / "w"), fake_generator(), parent)
    derived = _derive(parent, store, tmp_path)
    opened = open_snapshot(derived.ref)
    parents = {row["row_id"]: (split, row) for split, rows in _rows(parent).items() for row in rows}
    written = {(row["row_id"], row["candidate"]): row for row in store.read(prompt_ids(parent, BOTH)).to_pylist()}
    found = _rows(opened)
    for split in BOTH:
        for row in found[split]:
            where, origin = parents[row["sequence_parent"]]
            answer = written[row["sequence_parent"], row["sequence_candidate"]]
            assert where == split and row["text"] == origin["text"] + answer["text"]
            assert {name: row[name] for name in ("lang", "tokens", "count", "label")} == {
                name: origin[name] for name in ("lang", "tokens", "count", "label")
            }
            assert row["sequence_log_probability"] == answer["log_probability"]
            assert row["sequence_tokens"] == answer["tokens"] and row["sequence_score"] is None
    for split in ("calibration", "test"):
        assert [{k: v for k, v in row.items() if k not in COLUMNS} for row in found[split]] == _rows(parent)[split]
        assert all(row[name] is None for row in found[split] for name in COLUMNS)
    answered = sum(row["reason"] is None for row in written.values())
    assert sum(len(found[split]) for split in BOTH) == answered == 2 * (len(prompt_ids(parent, BOTH)) - 1)


def test_a_parent_with_sets_of_classes_keeps_them_in_rows_that_are_not_written(tmp_path: Path) -> None:
    """Written texts have no label, of the same type; the manifest keeps the kind of the labels."""
    pq.write_table(pa.table({"text": TEXTS, "label": [["b", "a"], [], None] * 27}), tmp_path / "in.parquet")
    config = SnapshotConfig.model_validate(
        {"source": str(tmp_path / "in.parquet"), "splits": FOUR_SPLITS, "columns": {"label": "label"}, "shard_rows": 16}
    )
    url = str(tmp_path / "parents")
    parent = open_snapshot(take_snapshot(config, input_column="text", seed=0, url=url, truth="classes"))
    derived = _derive(parent, write_all(str(tmp_path / "w"), fake_generator(), parent), tmp_path)
    opened, before = open_snapshot(derived.ref), _rows(parent)
    assert opened.manifest.truth == "classes" and opened.classes == ("a", "b")
    for split, rows in _rows(opened).items():
        wanted = [None] * len(rows) if split in BOTH else [row["label"] for row in before[split]]
        assert [row["label"] for row in rows] == wanted
    assert opened.manifest.splits["test"] == parent.manifest.splits["test"]


def test_the_manifest_says_what_was_dropped_and_why(parent: Snapshot, tmp_path: Path) -> None:
    """Parent, generator, filters and counts that add up; the quarantine names the prompt."""
    store = write_all(str(tmp_path / "w"), fake_generator(), parent)
    derived = _derive(parent, store, tmp_path, keep="best", filters={"ended": True, "max_tokens": 12, "scorer": "m:f"})
    opened = open_snapshot(derived.ref)
    about, rows, counts = opened.manifest.derived, opened.manifest.rows, derived.counts
    assert about is not None and about["counts"] == json.loads(json.dumps(counts))
    assert about["parent"] == parent.ref.fingerprint and about["generator"]["temperature"] == 1.0
    assert about["generator_fingerprint"] == store.manifest.fingerprint and about["filters"]["max_tokens"] == 12
    assert counts["sequences"] == counts["kept"] + sum(counts["dropped"].values())
    assert set(counts["dropped"]) == {"cut off", "too long", "not the best"}
    assert (
        counts["quarantined"] == {"the teacher is configured to fail": 1} and counts["prompts_left"] == counts["kept"]
    )
    assert rows.read == rows.kept + rows.merged + rows.dropped + rows.excluded + rows.quarantined
    (bad,) = opened.read_quarantine().to_pylist()
    assert bytes.fromhex(bad["source"]) in [row["row_id"] for split in BOTH for row in _rows(parent)[split]]
    assert all(row["sequence_score"] == row["sequence_tokens"] for row in _rows(opened)["train"])


def _always(answers: dict[str, str]) -> FakeAuthor:
    """An author of fixed answers to some prompts."""

    def author(rows: pa.Table, generator: Generator) -> pa.Table:
        texts = dict(zip(rows["row_id"].to_pylist(), rows["text"].to_pylist(), strict=True))
        return pa.Table.from_pylist(
            [
                {**row, "text": answers.get(texts[row["row_id"]], row["text"])}
                for row in fake_author(rows, generator).to_pylist()
            ],
            SCHEMA,
        )

    return author


def test_equal_answers_to_a_prompt_count_once_or_as_often_as_they_were_written(tmp_path: Path) -> None:
    """Dropped as duplicates, or merged with their counts added."""
    parent = prompts_snapshot(tmp_path, [f"row {n}" for n in range(80)])
    first = _rows(parent)["train"][0]["text"]
    store = write_all(str(tmp_path / "w"), fake_generator(), parent, _always({first: "X"}))
    for dedup, dropped, merged, count in ((True, {"duplicate": 1}, 0, 1), (False, {}, 1, 2)):
        derived = _derive(parent, store, tmp_path, filters={"dedup": dedup})
        assert (derived.counts["dropped"], derived.counts["merged"]) == (dropped, merged)
        rows = _rows(open_snapshot(derived.ref))["train"]
        assert [row["count"] for row in rows if row["text"] == f"{first}X"] == [count]


def test_a_text_that_is_written_and_tested_is_only_learnt(tmp_path: Path) -> None:
    """The teacher writes what stands in the test split: it is one row, in train, and its counts are added."""
    parent = prompts_snapshot(tmp_path, [f"row {n}" for n in range(80)])
    split = {row["text"]: name for name, rows in _rows(parent).items() for row in rows}
    prompt, tested = next(
        (one, two)
        for one in split
        for two in split
        if split[one] == "train" and split[two] == "test" and two.startswith(one) and two != one
    )
    store = write_all(str(tmp_path / "w"), fake_generator(), parent, _always({prompt: tested.removeprefix(prompt)}))
    derived = _derive(parent, store, tmp_path)
    found = {
        name: [row for row in rows if row["text"] == tested] for name, rows in _rows(open_snapshot(derived.ref)).items()
    }
    assert {name: len(rows) for name, rows in found.items()} == {
        "train": 1,
        "validation": 0,
        "calibration": 0,
        "test": 0,
    }
    assert found["train"][0]["count"] == 2 and found["train"][0]["sequence_candidate"] == 0
    assert derived.counts["merged"] == 1


def test_conversations_that_differ_in_their_last_answer_alone_are_one_row_when_written_anew(tmp_path: Path) -> None:
    """Two parents of two splits, one greedy answer: the row is in train alone, with both counts."""

    def chat(n: int, answer: str) -> str:
        return json.dumps([{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": answer}])

    parent = prompts_snapshot(tmp_path, [chat(n // 2, f"a{n}") for n in range(120)])

    def author(rows: pa.Table, generator: Generator) -> pa.Table:
        return pa.Table.from_pylist(
            [
                {
                    "row_id": row_id,
                    "candidate": 0,
                    "text": "same",
                    "tokens": 1,
                    "log_probability": -1.0,
                    "ended": True,
                    "same_tokens": True,
                    "reason": None,
                }
                for row_id in rows["row_id"].to_pylist()
            ],
            SCHEMA,
        )

    generator = fake_generator(method="greedy", candidates=1, format="chat")
    store = write_all(str(tmp_path / "w"), generator, parent, author, splits=SPLITS)
    derived = _derive(parent, store, tmp_path, method="greedy", splits=SPLITS)
    found = _rows(open_snapshot(derived.ref))
    questions = {split: {json.loads(row["text"])[0]["content"] for row in rows} for split, rows in found.items()}
    assert sum(len(part) for part in questions.values()) == len(set.union(*questions.values())) == 60
    assert derived.counts["merged"] == 60
    assert sum(row["count"] for rows in found.values() for row in rows) == 120
    of_train = {json.loads(row["text"])[0]["content"] for row in _rows(parent)["train"]}
    assert questions["train"] == of_train


def test_nothing_is_written_twice_neither_in_a_rerun_nor_for_a_snapshot_that_grew(tmp_path: Path) -> None:
    """A rerun has nothing to do; of a later snapshot only the new prompts are written, and content stays."""
    old = prompts_snapshot(tmp_path / "old", TEXTS)
    new = prompts_snapshot(tmp_path / "new", [*TEXTS, *(f"more {n}" for n in range(30))])
    store = write_all(str(tmp_path / "w"), fake_generator(), old)
    assert write_all(str(tmp_path / "w"), fake_generator(), old, _throwing).log.length == store.log.length
    missing = store.coverage(new, BOTH, 8)
    assert (
        missing.rows_total - missing.rows_reused - missing.rows_quarantined
        == missing.rows_left
        == sum(len(unit.rows) for unit in missing.units)
        < 30
    )
    assert missing.rows_quarantined == 1
    before = store.read(prompt_ids(old, BOTH))
    write_all(str(tmp_path / "w"), fake_generator(), new)
    assert store.read(prompt_ids(old, BOTH)) == before
    apart = write_all(str(tmp_path / "apart"), fake_generator(model="moved"), new, unit_rows=3)
    assert apart.read(prompt_ids(new, BOTH)) == store.read(prompt_ids(new, BOTH))
    assert _derive(new, apart, tmp_path / "a").ref.fingerprint == _derive(new, store, tmp_path / "b").ref.fingerprint


def test_two_writers_that_divide_prompts_otherwise_leave_each_prompt_once(parent: Snapshot, tmp_path: Path) -> None:
    """Overlapping units of two writers are all committed; the first that holds a prompt counts."""
    url = str(tmp_path / "w")
    store = create_or_open(url, fake_generator())
    other = store.coverage(parent, BOTH, 5).units

    def late(rows: pa.Table, generator: Generator) -> pa.Table:
        table = fake_author(rows, generator)
        return table.set_column(
            table.column_names.index("tokens"), SCHEMA.field("tokens"), pa.array(np.full(len(table), 99, np.int32))
        )

    write_all(url, fake_generator(), parent)
    store.commit(
        [
            write_attempt(
                url,
                fake_generator(),
                unit,
                late(parent.read_shard(parent.shard(unit.shard)).take(pa.array(unit.rows)), fake_generator()),
            )
            for unit in other
        ]
    )
    table = store.read(prompt_ids(parent, BOTH))
    assert 99 not in table["tokens"].to_pylist()
    assert len(pc.unique(table["row_id"])) == len(prompt_ids(parent, BOTH))
    assert _derive(parent, store, tmp_path).counts["sequences"] == 2 * (len(prompt_ids(parent, BOTH)) - 1)


def test_many_records_are_read_from_a_checkpoint(
    parent: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of texts has the label store's checkpoints of its log, and reads the same through them."""
    monkeypatch.setattr(unit_store, "COMPACT_EVERY", 1)
    url = str(tmp_path / "w")
    store = write_all(url, fake_generator(), parent, units_a_record=1)
    store.log.refresh()
    assert store.log.checkpoints() and len(store.ledger) > 2
    again = create_or_open(url, fake_generator())
    assert again.coverage(parent, BOTH, 8).units == () and again.log.first > 0
    assert list(again.ledger.receipts()) == list(store.ledger.receipts())
    assert again.read(prompt_ids(parent, BOTH)) == store.read(prompt_ids(parent, BOTH))


def test_an_attempt_must_be_whole(parent: Snapshot, tmp_path: Path) -> None:
    """Missing, foreign, doubled prompts or candidates are refused; so are another generator's receipts."""
    url = str(tmp_path / "w")
    store = create_or_open(url, fake_generator())
    unit = store.coverage(parent, ("train",), 8).units[0]
    rows = parent.read_shard(parent.shard(unit.shard)).take(pa.array(unit.rows))
    whole = fake_author(rows, fake_generator())
    for wrong, says in (
        (whole.slice(2), "found 7 prompts, expected the unit's 8"),
        (whole.slice(1), "must have 2 sequences"),
        (ordered([whole, whole.slice(0, 1)]), "must have 2 sequences"),
        (ordered([whole, rejected_table([(rows["row_id"][0].as_py(), "why")])]), "must have 2"),
    ):
        with pytest.raises(LabelError, match=says):
            write_attempt(url, fake_generator(), unit, wrong)
    with pytest.raises(LabelError, match="and the store's generator"):
        write_attempt(url, fake_generator(seed=1), unit, whole)
    other = create_or_open(str(tmp_path / "other"), fake_generator(seed=1))
    theirs = write_all(str(tmp_path / "other"), fake_generator(seed=1), parent)
    with pytest.raises(LabelError, match="is for manifest"):
        store.commit(theirs.ledger.receipts())
    assert other.manifest.fingerprint != store.manifest.fingerprint


def test_damage_is_seen(parent: Snapshot, tmp_path: Path) -> None:
    """A changed file, one of another size, another generator's folder."""
    url = str(tmp_path / "w")
    store = write_all(url, fake_generator(), parent)
    receipt = next(store.ledger.receipts())
    place = files.join(url, receipt.name)
    data = bytearray(files.read_bytes(place))
    data[10] ^= 1
    files.write_bytes(place, bytes(data))
    with pytest.raises(CorruptStore, match=r"found \d+ bytes with .*, the log promised"):
        store.read(prompt_ids(parent, BOTH))
    files.write_bytes(place, bytes(data[:-1]))
    with pytest.raises(CorruptStore, match=r"found \d+ bytes, its receipt has \d+; make the unit again"):
        store.commit([receipt])
    with pytest.raises(CorruptStore, match="found the generator"):
        create_or_open(url, fake_generator(seed=3))
    assert create_or_open(url, fake_generator(model="elsewhere")).manifest.fingerprint == store.manifest.fingerprint
    files.write_bytes(files.join(url, "store.json"), b"{")
    with pytest.raises(CorruptStore, match="not JSON"):
        create_or_open(url, fake_generator())


def test_too_little_left_is_an_error_that_says_where_it_went(parent: Snapshot, tmp_path: Path) -> None:
    """Unwritten prompts; a split of which the filters leave nothing."""
    store = create_or_open(str(tmp_path / "w"), fake_generator())
    with pytest.raises(LabelError, match="of .* prompts are not written yet"):
        _derive(parent, store, tmp_path)
    write_all(store.url, fake_generator(), parent)
    with pytest.raises(SnapshotError, match="the derived split train, validation is empty: .* improbable"):
        _derive(parent, store, tmp_path, filters={"min_log_probability": -0.001})


def test_conversations_in_which_nothing_can_be_learnt_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Prompts alone in a split that is not written anew; how many, in which, and what to do."""
    users = [[{"role": "user", "content": f"q{n}"}] for n in range(60)]
    answered = [[*user, {"role": "assistant", "content": "a"}] for user in users]
    mute = prompts_snapshot(tmp_path / "mute", [json.dumps(user) for user in users])
    with pytest.raises(
        SnapshotError, match=r"of assistant would stay .*: \d+ of \d+ in calibration, \d+ of \d+ in test"
    ):
        require_answers(mute, splits=BOTH, form="chat", roles=("assistant",), max_bad_fraction=0.01)
    require_answers(mute, splits=SPLITS, form="chat", roles=("assistant",), max_bad_fraction=0.01)
    require_answers(mute, splits=BOTH, form="chat", roles=("user",), max_bad_fraction=0.01)
    require_answers(mute, splits=BOTH, form="chat", roles=("assistant",), max_bad_fraction=1.0)
    said = prompts_snapshot(tmp_path / "said", [json.dumps(one) for one in answered])
    require_answers(said, splits=BOTH, form="chat", roles=("assistant",), max_bad_fraction=0)


def test_sources_without_a_target_are_refused_where_nobody_writes_one(tmp_path: Path) -> None:
    """In a split that stays as it is; any text is learnt of."""
    unwritten = prompts_snapshot(tmp_path / "unwritten", [pair_text(f"source {n}", None) for n in range(60)])
    with pytest.raises(SnapshotError, match=r"sources without a target would stay .*: \d+ of \d+ in calibration"):
        require_answers(unwritten, splits=BOTH, form="pair", roles=(), max_bad_fraction=0.01)
    require_answers(unwritten, splits=SPLITS, form="pair", roles=(), max_bad_fraction=0)
    require_answers(unwritten, splits=BOTH, form="text", roles=(), max_bad_fraction=0)
    written = prompts_snapshot(tmp_path / "written", [pair_text(f"source {n}", "t") for n in range(60)])
    require_answers(written, splits=BOTH, form="pair", roles=(), max_bad_fraction=0)


def test_ids_of_texts_are_those_that_any_snapshot_would_give(parent: Snapshot, tmp_path: Path) -> None:
    """A derived row that is frozen again as a source is the same row."""
    store = write_all(str(tmp_path / "w"), fake_generator(), parent)
    opened = open_snapshot(_derive(parent, store, tmp_path).ref)
    table = pa.concat_tables([opened.read(split, columns=["row_id", "text"]) for split in SPLITS])
    again = prompts_snapshot(tmp_path / "again", table["text"].to_pylist())
    ids = np.concatenate([to_numpy(again.read(split)["row_id"]) for split in SPLITS])
    assert sorted(ids) == sorted(to_numpy(table["row_id"]))
