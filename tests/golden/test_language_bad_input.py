"""What becomes of documents and settings that cannot be used: a quarantined row with its reason, or one clear error.

The row ids of quarantined documents stand in the snapshot's quarantine, or among the store's rejected rows.
"""

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import StudentModel
from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ConfigError, TeacherRefused
from ray_distill.labels.store.reader import open_label_set
from ray_distill.models.text.lm_processor import language_processor
from ray_distill.runtime.labelling.identify_teacher import make_manifest, prepare_teacher
from ray_distill.runtime.stages.preflight import check
from ray_distill.runtime.stages.snapshot import freeze
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.testing.models import tiny_causal_tokenizer, write_tiny_causal_model
from tests.labs import language_store as lab

GOOD = [f"document number {number} is a good one" for number in range(20)]
USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_causal_model(tmp_path_factory.mktemp("models") / "teacher", seed=1))


def chats(rows: list[Any]) -> list[Any]:
    """Good conversations, each another, and the given rows."""
    return [[{**USER, "content": text}, ASSISTANT] for text in GOOD] + rows


def labelled(folder: Path, teacher: str, rows: list[Any], **settings: Any) -> tuple[SnapshotRef, lab.Labeller, int]:
    """Freeze and label; the snapshot, who labelled, and how many documents have labels."""
    source = lab.write_texts(folder / "rows.jsonl", rows)
    labeller = lab.Labeller(config=lab.config_of(folder, source, teacher={"model": teacher, **settings}))
    snapshot = freeze(labeller.config)
    return snapshot, labeller, open_label_set(labeller.label(snapshot)).rows


def quarantine(snapshot: SnapshotRef) -> list[str]:
    """Reasons for which rows did not become part of the snapshot."""
    return sorted(open_snapshot(snapshot).read_quarantine()["reason"].to_pylist())


def test_texts_that_are_none_stay_out_of_the_snapshot(tmp_path: Path, teacher: str) -> None:
    """Empty, blank, missing, not text; and bytes that are not UTF-8, beside whole documents that are all kept."""
    lines = [json.dumps({"text": text}).encode() for text in (*GOOD, "", " \n", None, 7)]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*lines, b'{"text": "\xff\xfe"}', b'{"text": "\\ud800"}']))
    labeller = lab.Labeller(config=lab.config_of(tmp_path, tmp_path / "rows.jsonl", teacher={"model": teacher}))
    snapshot = freeze(labeller.config)
    assert quarantine(snapshot) == [*["missing text"] * 3, "not UTF-8", "not UTF-8", "wrong type"]
    assert open_label_set(labeller.label(snapshot)).rows == len(GOOD) and labeller.rejected == {}


def test_a_text_of_one_token_has_nothing_to_learn(tmp_path: Path, teacher: str) -> None:
    """It is in the snapshot, and rejected when it is labelled; the teacher is not asked for it."""
    _, labeller, rows = labelled(tmp_path, teacher, [*GOOD, "x"])
    assert list(labeller.rejected.values()) == ["fewer than two tokens"] and rows == len(labeller.asked) == len(GOOD)


@pytest.mark.parametrize("long", ["cut", "reject"])
def test_documents_longer_than_the_context_are_cut_or_rejected(tmp_path: Path, teacher: str, long: str) -> None:
    """As the config says: learnt up to the limit, or in quarantine with both numbers."""
    _, labeller, rows = labelled(tmp_path, teacher, [*GOOD, "word " * 100], language={"long": long})
    if long == "cut":
        assert rows == len(GOOD) + 1 and labeller.rejected == {}
    else:
        assert rows == len(GOOD)
        assert list(labeller.rejected.values()) == ["500 tokens, more than the 128 of max_length"]


@pytest.mark.parametrize("long", ["cut", "reject"])
def test_a_prompt_longer_than_the_context_leaves_nothing_to_learn(tmp_path: Path, teacher: str, long: str) -> None:
    """Where no token of an answer is left, the row is rejected either way; an answer that is cut is learnt so far."""
    prompt, answer = [{**USER, "content": "ask " * 100}, ASSISTANT], [USER, {**ASSISTANT, "content": "say " * 100}]
    _, labeller, rows = labelled(tmp_path, teacher, chats([prompt, answer]), language={"format": "chat", "long": long})
    reasons = sorted(labeller.rejected.values())
    if long == "cut":
        assert rows == len(GOOD) + 1 and len(reasons) == 1
        assert reasons[0].startswith("nothing to learn: no message of assistant in the first 128 of its ")
    else:
        assert rows == len(GOOD) and all(reason.endswith("more than the 128 of max_length") for reason in reasons)
        assert len(reasons) == 2


def test_conversations_that_are_none_are_rejected_with_the_message(tmp_path: Path, teacher: str) -> None:
    """An unknown role, no messages, an empty content object, an answer that nobody gives; the rest is labelled."""
    bad = {
        "message 2 has the unknown role 'narrator': "
        "expected one of system, developer, user, assistant, tool, function": [
            USER,
            {"role": "narrator", "content": "so"},
        ],
        "no messages": {"messages": []},
        "message 1 (user) has neither content nor tool_calls": [{"role": "user"}, ASSISTANT],
        "nothing to learn: no message of assistant in it": [USER],
        "not JSON: Expecting value: line 1 column 1 (char 0)": "just text",
    }
    snapshot, labeller, rows = labelled(tmp_path, teacher, chats(list(bad.values())), language={"format": "chat"})
    assert sorted(labeller.rejected.values()) == sorted(bad) and rows == len(GOOD) and quarantine(snapshot) == []


def test_a_role_that_there_is_not_is_an_error_of_the_config(tmp_path: Path, teacher: str) -> None:
    """Not a row's fault: nothing is labelled."""
    with pytest.raises(ConfigError, match=r"language\.roles names asistant: expected some of system, .*assistant"):
        labelled(tmp_path, teacher, chats([]), language={"format": "chat", "roles": ["asistant"]})


def test_conversations_where_texts_are_expected_are_refused(tmp_path: Path, teacher: str) -> None:
    """Nested rows are no texts: each is in quarantine by its reason; plain text as a conversation has its own."""
    source = lab.write_texts(tmp_path / "rows.jsonl", [*GOOD, [USER, ASSISTANT]])
    snapshot = freeze(lab.config_of(tmp_path, source, teacher={"model": teacher}))
    assert quarantine(snapshot) == ["wrong type"]


def test_more_tokens_than_there_are_is_an_error(tmp_path: Path, teacher: str) -> None:
    """k > V: both numbers, and what to do, before the teacher is asked for a row."""
    source = lab.write_texts(tmp_path / "rows.jsonl", GOOD)
    config = lab.config_of(tmp_path, source, teacher={"model": teacher}, signal={"estimator": "topk", "k": 265})
    with pytest.raises(ConfigError, match=r"labels\.signal\.k is 265, but .* has a vocabulary of 264: give at most"):
        make_manifest(config, prepare_teacher(config, freeze(config), None))


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ({"vocab_size": 200}, r"has a vocabulary of 200, fewer than the 261 tokens .* set its vocab_size to 264"),
        ({"max_position_embeddings": 64}, r"has 64 positions, but the teacher reads 128 tokens of a text: set"),
    ],
)
def test_a_student_that_cannot_hold_the_teachers_labels_is_refused(
    tmp_path: Path, teacher: str, overrides: dict[str, int], why: str
) -> None:
    """Fewer classes than tokens, or a shorter context: one error that names both sides, before anything is trained."""
    source = lab.write_texts(tmp_path / "rows.jsonl", GOOD)
    config = lab.config_of(tmp_path, source, teacher={"model": teacher})
    model = StudentModel.model_validate({"from": "config", "overrides": {"num_hidden_layers": 1, **overrides}})
    config = config.model_copy(update={"student": config.student.model_copy(update={"model": model})})
    with pytest.raises(ConfigError, match=why):
        lab.train(config, lab.labelled(config), tmp_path / "students")


def test_settings_that_do_not_go_together_are_refused_before_the_teacher_is_paid(tmp_path: Path, teacher: str) -> None:
    """Pooled states for a language model, classes for one that has none: all at once."""
    config = lab.config_of(
        tmp_path, lab.write_texts(tmp_path / "rows.jsonl", GOOD), teacher={"model": teacher}, hidden={"layers": [-1]}
    )
    losses = {**config.student.losses, "hidden": config.student.losses["soft"]}
    config = config.model_copy(
        update={
            "student": config.student.model_copy(update={"losses": losses}),
            "snapshot": config.snapshot.model_copy(update={"classes": ("a", "b")}),
        }
    )
    with pytest.raises(ConfigError, match=r"2 wrong field\(s\)") as error:
        check(config)
    assert "labels.hidden.pool is mean" in str(error.value) and "snapshot.classes: causal_lm has no cl" in str(
        error.value
    )


def test_a_teacher_that_has_not_the_layer_is_refused(tmp_path: Path, teacher: str) -> None:
    """A layer that is not there is named with those that are."""
    source = lab.write_texts(tmp_path / "rows.jsonl", GOOD)
    config = lab.config_of(tmp_path, source, teacher={"model": teacher}, hidden={"layers": [9], "pool": "token"})
    with pytest.raises(TeacherRefused, match="9"):
        prepare_teacher(config, freeze(config), None)


@pytest.mark.parametrize("format", ["text", "chat"])
def test_a_document_of_a_million_tokens_costs_a_bounded_time_and_memory(format: str) -> None:
    """No more than the limit is kept, in seconds; meanwhile a token takes at most 300 bytes (traced on a tenth)."""

    def text(tokens: int) -> str:
        document = "word " * (tokens // 5)
        return document if format == "text" else json.dumps([USER, {**ASSISTANT, "content": document}])

    processor = language_processor(tiny_causal_tokenizer(), 512, LanguageConfig(format=format))
    started = time.process_time()
    features, reasons = processor.language([text(1_000_000)])
    seconds = time.process_time() - started
    tracemalloc.start()
    processor.language([text(100_000)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(features["input_ids"].values) == 512 and reasons == {}
    assert seconds < 30 and peak < 300 * 100_000, (seconds, peak)
