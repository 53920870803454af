"""Record and verify the decision chain: all verdicts on a model name, append-only.

The chain is the truth, and a registry alias follows it. Entries are records of a `CommitLog` under
``<url>/decisions``: created exclusively, never rewritten. Each entry names the champion at its time, so that a PROMOTE
judged against a champion that has been replaced since is refused (a registry alias has no compare-and-set; this chain
does). Each entry has the digest of those before it, and a pin beside the log that of the last, so that a reader finds
an entry that was altered, removed or forged.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from ray_distill.artifacts import Artifact, Decision, StudentRef, Verdict
from ray_distill.errors import ChangedModel, ConfigError, CorruptStore, PromotionError
from ray_distill.storage import files
from ray_distill.storage.log import CommitLog, Record
from ray_distill.storage.portable import located, portable

#: Way out where the chain is lost for good.
_BEGIN = "move the folder {} away to begin a chain without a champion"


class Entry(Artifact):
    """One decision as it was recorded."""

    decision: Decision
    previous: StudentRef | None
    """The champion when the decision was recorded; None before the first PROMOTE."""
    time: str
    """ISO 8601, UTC."""
    who: str
    """Person or job that requested the decision."""
    after: str
    """Digest of the entries before this one."""


def read_chain(url: str) -> tuple[Entry, ...]:
    """Read the decisions under ``url``, oldest first; without any the chain is empty.

    ``url`` is a folder in the campaign's output: entries refer to students below that output relative to it.

    Raises:
        CorruptStore: an entry is missing, is not JSON, or is not the one that was recorded.
        PromotionError: an entry is not a decision, or does not follow from the entries before it.
    """
    log = CommitLog(files.join(url, "decisions"))
    _check(log)
    return _entries(log, url)


def record_decision(url: str, decision: Decision, *, against: StudentRef | None, who: str, time: datetime) -> Entry:
    """Append a decision and return its entry; repeating the newest decision changes nothing.

    Args:
        url: folder of the chain.
        decision: the gate's decision.
        against: the champion that the report compared the student with; None if there was no champion.
        who: person or job that requested the decision.
        time: time of the decision, with a time zone.

    Raises:
        PromotionError: a PROMOTE was judged against a champion other than the present one.
    """
    log = CommitLog(files.join(url, "decisions"))
    found: list[Entry] = []

    def build(records: Sequence[Record]) -> Record | None:
        chain = _entries(log, url)
        if chain and chain[-1].decision == decision:
            found[:] = [chain[-1]]
            return None
        _refuse_stale(decision, champion(chain), against)
        found[:] = [
            Entry(
                decision=decision,
                previous=champion(chain),
                who=who,
                time=time.astimezone(UTC).isoformat(timespec="seconds"),
                after=log.digest,
            )
        ]
        record: Record = portable(found[0].to_dict(), _output(url))
        return record

    _check(log)
    log.append(build)
    log.pin()
    return found[0]


def _check(log: CommitLog) -> None:
    try:
        log.check_pins()
    except CorruptStore as error:
        raise CorruptStore(f"{error}; without a copy, {_BEGIN.format(log.root)}") from error


def lost_champion(url: str, error: ChangedModel) -> ChangedModel:
    """Return the error of a champion whose files are lost, with a way out.

    Trained again, it may be another model.

    Args:
        url: folder of the chain.
        error: of the files.
    """
    begin = _BEGIN.format(files.join(url, "decisions"))
    return ChangedModel(
        f"the champion of the decision chain: {error}. If that makes another model, {begin}", found=error.found
    )


def champion(chain: Sequence[Entry]) -> StudentRef | None:
    """Return the student of the last PROMOTE, or None."""
    promoted = (entry.decision for entry in reversed(chain) if entry.decision.verdict is Verdict.PROMOTE)
    return next((decision.student for decision in promoted), None)


def _output(url: str) -> str:
    """Return the output that the chain's folder lies in, to which its references are relative."""
    return url.rstrip("/").rpartition("/")[0]


def _entries(log: CommitLog, url: str) -> tuple[Entry, ...]:
    entries, root = list[Entry](), log.root
    for number, record in enumerate(log.records):
        try:
            entry = Entry.from_dict(located(record, _output(url)))
        except ConfigError as error:
            raise PromotionError(
                f"{root}: entry {number} is not a decision of this version of ray-distill: {error}; use the version "
                f"that wrote it, or {_BEGIN.format(root)}"
            ) from error
        if entry.previous != champion(entries):
            raise PromotionError(
                f"{root}: entry {number} names {_name(entry.previous)} as champion, but the entries "
                f"before it result in {_name(champion(entries))}: the chain was altered, restore it, "
                f"or {_BEGIN.format(root)}"
            )
        if entry.after != log.prefix_digest(number):
            raise PromotionError(
                f"{root}: entry {number} was recorded after other entries than those before it now: the chain was "
                f"altered, restore it, or {_BEGIN.format(root)}"
            )
        entries.append(entry)
    return tuple(entries)


def _refuse_stale(decision: Decision, present: StudentRef | None, against: StudentRef | None) -> None:
    if present is not None and present.fingerprint == decision.student.fingerprint:
        return  # other limits, or a second run at once: the champion is this student already
    if decision.verdict is Verdict.PROMOTE and present != against:
        raise PromotionError(
            f"the report compared the student with {_name(against)}, but the champion is now "
            f"{_name(present)}: evaluate again, then promote"
        )


def _name(student: StudentRef | None) -> str:
    return "no model" if student is None else f"{student.url} ({student.fingerprint[:12]})"
