"""The decision chain: append-only, verified, safe against races; the alias follows it."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from ray_distill.artifacts import Decision, LabelSetRef, SnapshotRef, StudentRef, Verdict
from ray_distill.errors import CorruptStore, PromotionError
from ray_distill.promotion.chain import champion, check_alias, read_chain, record_decision

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def student(name):
    labels = LabelSetRef(
        store="l", fingerprint="g", log_length=1, log_digest="d", snapshot=SnapshotRef(url="u", fingerprint="h")
    )
    return StudentRef(url=f"models/{name}", fingerprint=name * 8, arm="student", labels=labels)


def decision(name, verdict=Verdict.PROMOTE):
    return Decision(verdict=verdict, reasons=(f"{name} is {verdict}",), student=student(name), report_fingerprint=name)


def record(url, what, against=None):
    return record_decision(str(url), what, against=against, who="ann", time=NOON)


def test_the_champion_is_the_last_promoted(tmp_path):
    """HOLD and REJECT are remembered and leave the champion; every entry names the champion it found."""
    assert read_chain(str(tmp_path)) == () and champion(()) is None
    record(tmp_path, decision("a"))
    record(tmp_path, decision("b", Verdict.REJECT), against=student("a"))
    record(tmp_path, decision("c"), against=student("a"))
    record(tmp_path, decision("d", Verdict.HOLD))
    chain = read_chain(str(tmp_path))
    assert champion(chain) == student("c")
    assert [entry.previous for entry in chain] == [None, student("a"), student("a"), student("c")]
    assert (chain[0].who, chain[0].time) == ("ann", "2026-11-20T12:00:00+00:00")


def test_recording_again_changes_nothing(tmp_path):
    """A resumed promote finds its own entry, though the champion is by now its own student."""
    first = record(tmp_path, decision("a"))
    assert record(tmp_path, decision("a")) == first
    assert len(read_chain(str(tmp_path))) == 1


def test_a_stale_promote_is_refused(tmp_path):
    """What was judged against an old champion may not replace the new one; a HOLD may be recorded."""
    record(tmp_path, decision("a"))
    with pytest.raises(PromotionError, match="evaluate again"):
        record(tmp_path, decision("b"))
    record(tmp_path, decision("b", Verdict.HOLD))
    assert champion(read_chain(str(tmp_path))) == student("a")


def test_of_racing_promotes_one_wins(tmp_path):
    """Eight first champions at once: one is recorded, seven are told to evaluate again."""

    def attempt(name):
        try:
            return record(tmp_path, decision(name)).decision.student
        except PromotionError:
            return None

    with ThreadPoolExecutor(8) as pool:
        won = [who for who in pool.map(attempt, "abcdefgh") if who is not None]
    assert won == [champion(read_chain(str(tmp_path)))] and len(read_chain(str(tmp_path))) == 1


def test_racing_holds_are_all_recorded(tmp_path):
    """Decisions that change nothing never push each other out."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: record(tmp_path, decision(name, Verdict.HOLD)), "abcd"))
    assert sorted(entry.decision.report_fingerprint for entry in read_chain(str(tmp_path))) == list("abcd")


def test_an_altered_chain_is_refused(tmp_path):
    """An entry rewritten by hand no longer follows from the others; a lost one is a hole."""
    record(tmp_path, decision("a"))
    record(tmp_path, decision("b"), against=student("a"))
    first, second = sorted((tmp_path / "decisions").rglob("*.json"))
    text = first.read_text()
    first.write_text(text.replace("PROMOTE", "HOLD"))
    with pytest.raises(PromotionError, match="altered"):
        read_chain(str(tmp_path))
    first.write_text(json.dumps({"kind": "Noise"}))
    with pytest.raises(PromotionError, match="not a decision"):
        read_chain(str(tmp_path))
    first.unlink()
    with pytest.raises(CorruptStore):
        read_chain(str(tmp_path))
    assert second.exists()


@pytest.mark.parametrize(
    ("alias", "agree", "words"),
    [("a", True, "name models/a"), ("b", False, "point the alias"), (None, False, "the alias names no model")],
)
def test_alias_state(tmp_path, alias, agree, words):
    """The alias agrees only when it names the chain's champion."""
    record(tmp_path, decision("a"))
    state = check_alias(read_chain(str(tmp_path)), student(alias) if alias else None)
    assert state.agree is agree and words in state.sentence and state.champion == student("a")


def test_alias_without_a_champion():
    """Before the first PROMOTE there must be no alias."""
    assert check_alias((), None).agree
    assert "remove the alias" in check_alias((), student("a")).sentence
