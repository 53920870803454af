"""The decision chain: append-only, verified, safe against races; the alias follows it."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from ray_distill.artifacts import Decision, LabelSetRef, SnapshotRef, StudentRef, Verdict
from ray_distill.errors import CorruptStore, PromotionError
from ray_distill.promotion.chain import champion, read_chain, record_decision
from ray_distill.storage.log import CommitLog

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


def test_a_student_that_is_the_champion_is_decided_about_again(tmp_path):
    """By other limits, or by the report of a second run at once, which compared it with no champion."""
    record(tmp_path, decision("a"))
    for verdict in (Verdict.HOLD, Verdict.PROMOTE):
        other = decision("a", verdict).with_changes(report_fingerprint=f"another {verdict}")
        record(tmp_path, other)
        assert read_chain(str(tmp_path))[-1].decision == other
    assert champion(read_chain(str(tmp_path))) == student("a")


def forge(path, change):
    """Rewrite an entry as whoever knows the format would."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def chain_of_three(folder):
    """A promoted, B held, C promoted; the files of the entries."""
    record(folder, decision("a"))
    record(folder, decision("b", Verdict.HOLD), against=student("a"))
    record(folder, decision("c"), against=student("a"))
    return sorted((folder / "decisions" / "log").glob("*.json"))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_any_entry_that_is_rewritten_is_found(tmp_path, number):
    """Another name, another time, of any entry, the last too: its digest stands in the next one, and in a pin."""
    path = chain_of_three(tmp_path)[number]
    forge(path, lambda entry: entry.update(who="mallory"))
    with pytest.raises((PromotionError, CorruptStore), match="altered|are not those that an earlier"):
        read_chain(str(tmp_path))


def test_a_last_entry_that_is_removed_or_replaced_is_found(tmp_path):
    """Nothing follows it, so the pin alone knows it; with the pins gone too, the chain is what is left."""
    *_, last = chain_of_three(tmp_path)
    data = last.read_bytes()
    last.unlink()
    with pytest.raises(CorruptStore, match="found 2 records, expected at least 3"):
        read_chain(str(tmp_path))
    last.write_bytes(data.replace(b"PROMOTE", b"REJECT"))
    with pytest.raises(CorruptStore, match="are not those that an earlier command recorded"):
        record(tmp_path, decision("d", Verdict.HOLD))
    last.write_bytes(data)
    assert champion(read_chain(str(tmp_path))) == student("c")


def test_an_entry_of_another_version_is_named_with_a_way_out(tmp_path):
    """The first entry, which nothing pins but the log itself: the folder stays as it is."""
    record(tmp_path, decision("a", Verdict.HOLD))
    other = CommitLog(str(tmp_path / "other" / "decisions"))
    entry = json.loads(next((tmp_path / "decisions").rglob("*0.json")).read_text())
    del entry["after"]
    other.append(lambda records: entry)
    with pytest.raises(PromotionError, match="entry 0 is not a decision of this version .*after; .* move the folder"):
        read_chain(str(tmp_path / "other"))


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
    first, second = sorted((tmp_path / "decisions" / "log").rglob("*.json"))
    shutil.rmtree(tmp_path / "decisions" / "pins")
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
