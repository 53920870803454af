"""Registration after the decision: what a rerun can repair, and what it cannot; the alias follows the chain."""

import json
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from ray_distill.artifacts import Decision, EvalReport, LabelSetRef, SnapshotRef, StudentRef, Verdict
from ray_distill.config import parse_config
from ray_distill.errors import ChangedModel, DistillError, PromotionError, RegistryRefused
from ray_distill.evaluation.report.assemble import content_fingerprint
from ray_distill.fingerprint import sha256
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.models.io.trained import open_trained
from ray_distill.promotion.chain import read_chain, record_decision
from ray_distill.runtime import campaign
from ray_distill.runtime.core.session import Session
from ray_distill.runtime.stages import evaluate, promote
from ray_distill.runtime.stages import follow_chain as follow
from ray_distill.runtime.stages.follow_chain import follow_chain, tags_of
from ray_distill.testing.models import write_tiny_text_model
from ray_distill.tracking.none import InMemoryRegistry, NullTracker

STUDENT = StudentRef(
    url="students/one",
    fingerprint="f",
    arm="student",
    labels=LabelSetRef(
        store="s", fingerprint="l", log_length=1, log_digest="d", snapshot=SnapshotRef(url="n", fingerprint="n")
    ),
)
PREDICTIONS = b"predictions"
UNSIGNED = EvalReport(
    url="report/report.json",
    fingerprint="",
    task="text_classification",
    student=STUDENT,
    models={},
    files={"predictions.parquet": sha256(PREDICTIONS)},
)
REPORT = UNSIGNED.with_changes(fingerprint=content_fingerprint(UNSIGNED))
DECISION = Decision(verdict=Verdict.PROMOTE, reasons=("fine.",), student=STUDENT, report_fingerprint=REPORT.fingerprint)


class _Registry(InMemoryRegistry):
    """A registry whose aliases fail as the test says."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Fail, or point the alias."""
        if self.error is not None:
            raise self.error
        super().set_alias(name, alias, version)


def _session(folder: Path, error: Exception | None = None, **gate: str) -> Session:
    config = parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "output": str(folder),
            "snapshot": {"source": "r"},
            "labels": {"teacher": {"model": "m:f"}},
            "gate": gate,
        }
    )
    tracker = NullTracker()
    with tracker.run("c") as run:
        return Session(config=config, tracker=tracker, registry=_Registry(error), parent=run)


@pytest.fixture(autouse=True)
def _decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let chain and registry be real: the verdict is given, the page written, the model logged."""
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "predictions.parquet").write_bytes(PREDICTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(promote, "decide", lambda report, *parts: DECISION)
    monkeypatch.setattr(promote, "absent_arms", lambda *parts: {})
    monkeypatch.setattr(promote, "gate_fingerprint", lambda *parts: "")
    monkeypatch.setattr(promote, "open_trained", lambda student: nullcontext())
    monkeypatch.setattr(promote, "_over_compression", lambda *parts: [])
    monkeypatch.setattr(promote, "summary", lambda *parts, **more: "")
    monkeypatch.setattr(evaluate, "publish", lambda *parts, **more: "page")
    monkeypatch.setattr(evaluate, "log_student", lambda session, report: "models:/m-1")


def test_a_registry_that_refuses_is_an_error_that_a_rerun_does_not_promise_to_mend(tmp_path: Path) -> None:
    """The decision is named, what was refused is named, and the command fails."""
    session = _session(tmp_path, RegistryRefused("the alias is reserved"), alias="prod")
    with pytest.raises(RegistryRefused, match="PROMOTE is in the chain.*reserved.*gate.alias is prod") as error:
        promote.promote(session, REPORT)
    assert "run the command again to repair it" not in str(error.value)
    assert session.last("promote") is None
    assert promote.promote(_session(tmp_path), REPORT) == DECISION, "as advised: corrected, then promoted"
    assert len(read_chain(session.url("promotion"))) == 1


def test_a_registry_that_is_down_is_repaired_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost; the stage counts as unfinished, and a command that promoted nobody in fact does not succeed."""
    with pytest.raises(PromotionError, match="PROMOTE is in the chain.*no answer; run the command again to repair it"):
        promote.promote(_session(tmp_path, PromotionError("no answer")), REPORT)
    session = _session(tmp_path)
    assert promote.promote(session, REPORT) == DECISION
    assert session.registry.alias("c", "champion") == "1"
    held = DECISION.with_changes(verdict=Verdict.HOLD)
    monkeypatch.setattr(promote, "decide", lambda report, *parts: held)
    monkeypatch.setattr(evaluate, "log_student", lambda session, report: None)
    assert promote.promote(_session(tmp_path / "held"), REPORT) == held
    assert (
        "HOLD is in the chain, but the registry could not record it: MLflow has not recorded" in capsys.readouterr().err
    )


def test_another_alias_or_name_is_followed_though_the_decision_stands(tmp_path: Path) -> None:
    """They decide nothing, so the verdict is not made again; the registry still gets them."""
    for gate in ({"alias": "champion"}, {"alias": "blue"}, {"model_name": "intent"}):
        session = _session(tmp_path, **gate)
        promote.promote(session, REPORT)
        assert session.registry.alias(gate.get("model_name", "c"), gate.get("alias", "champion")) == "1"
    promote.promote(session, REPORT)
    assert list(session.registry._versions) == ["intent"] and len(session.registry._versions["intent"]) == 1, "done"


def test_a_report_that_was_changed_is_not_decided_about(tmp_path: Path) -> None:
    """Another note, a better number: the content is no longer what its fingerprint states."""
    session = _session(tmp_path)
    with pytest.raises(PromotionError, match="was changed after the evaluation.*run `ray-distill evaluate`"):
        promote.promote(session, REPORT.with_changes(notes=("the student is excellent",)))
    assert session.registry.alias("c", "champion") is None


def test_a_report_whose_predictions_are_lost_is_not_decided_about(tmp_path: Path) -> None:
    """The review page needs them: a report that lacks them is refused before a decision is in the chain."""
    session = _session(tmp_path)
    older = UNSIGNED.with_changes(files={})
    with pytest.raises(PromotionError, match="has no predictions.parquet; run `ray-distill evaluate`"):
        promote.promote(session, older.with_changes(fingerprint=content_fingerprint(older)))
    (tmp_path / "report" / "predictions.parquet").unlink()
    with pytest.raises(PromotionError, match="predictions.parquet is missing: restore it, or run"):
        promote.promote(session, REPORT)
    assert read_chain(session.url("promotion")) == ()


def test_a_student_that_nobody_judged_is_not_in_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files were swapped after the evaluation: refused before a decision is recorded; restored, it is promoted."""
    monkeypatch.setattr(promote, "open_trained", open_trained)
    digests = {
        name: save_model(
            load_model(str(write_tiny_text_model(tmp_path / f"base-{name}", ["a", "b"], seed)), task=REPORT.task),
            tmp_path / name,
            card="#",
            metadata={},
        )
        for seed, name in enumerate(("judged", "swapped"))
    }
    ref = STUDENT.with_changes(url=str(tmp_path / "judged"), fingerprint=digests["judged"])
    report = UNSIGNED.with_changes(student=ref)
    report = report.with_changes(fingerprint=content_fingerprint(report))
    monkeypatch.setattr(promote, "decide", lambda *parts: DECISION.with_changes(student=ref))
    session, weights = _session(tmp_path), tmp_path / "judged" / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes((tmp_path / "swapped" / "model.safetensors").read_bytes())
    with pytest.raises(ChangedModel, match="judged is not the student that was trained: its files have sha256:"):
        promote._decide(session, report)
    assert read_chain(session.url("promotion")) == ()
    weights.write_bytes(before)
    assert promote._decide(session, report).verdict is Verdict.PROMOTE
    assert len(read_chain(session.url("promotion"))) == 1


def _promoted(folder: Path) -> Session:
    session = _session(folder)
    promote.promote(session, REPORT)
    assert session.registry.alias("c", "champion") == "1"
    return session


def _told(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(json.loads(line)["event"] for line in capsys.readouterr().err.splitlines())


def test_an_alias_that_was_deleted_is_set_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the next `promote`, which has nothing else to do, and says so."""
    session = _promoted(tmp_path)
    del session.registry._aliases["c", "champion"]
    promote.promote(session, REPORT)
    assert session.registry.alias("c", "champion") == "1"
    assert "the alias champion of c named no version; the chain's champion is students/one" in _told(capsys)


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ({}, "version 2, which no campaign registered"),
        ({"student": "{}"}, "version 2, whose tag `student` is no reference"),
        (tags_of(STUDENT.with_changes(url="students/other", fingerprint="o")), "version 2, students/other"),
    ],
)
def test_an_alias_that_was_moved_is_reported_and_moved_back_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tags: dict[str, str], named: str
) -> None:
    """By hand, to a foreign version, by another campaign of the name: `promote` alone leaves it, `--verify` repairs."""
    session = _promoted(tmp_path)
    session.registry.set_alias("c", "champion", session.registry.register("models:/other", name="c", tags=tags))
    promote.promote(session, REPORT)
    assert session.registry.alias("c", "champion") == "2"
    told = _told(capsys)
    assert f"names {named}; the chain's champion is students/one: `ray-distill promote --verify`" in told
    found = follow_chain(session, move=True)
    assert session.registry.alias("c", "champion") == "1" == found.version
    assert named in found.repaired and not found.wrong
    assert follow_chain(session, move=True).repaired == ""


def test_a_champion_that_the_registry_lost_is_registered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model was deleted with all its versions: the champion's own folder is logged, and named by the alias."""
    session = _promoted(tmp_path)
    session.registry._versions.clear()
    session.registry._aliases.clear()
    logged: list[Path] = []
    parent = SimpleNamespace(model=lambda path, **more: logged.append(path) or "models:/again")
    session = replace(session, parent=parent)  # type: ignore[arg-type]
    monkeypatch.setattr(follow, "open_trained", lambda student: nullcontext(Path(student.url)))
    monkeypatch.setattr(follow, "example_of", lambda config, snapshot: ["x"])
    found = follow_chain(session, move=False)
    assert logged == [Path("students/one")] and "which was registered again" in found.repaired
    assert session.registry.tags("c", "1")["verdict"] == "PROMOTE"


def test_an_alias_of_another_chain_is_left_alone(tmp_path: Path) -> None:
    """Two campaigns may share a name; this one has promoted nobody, so the alias is none of its business."""
    session = _session(tmp_path)
    session.registry.set_alias("c", "champion", session.registry.register("models:/theirs", name="c", tags={}))
    found = follow_chain(session, move=True)
    assert "but this campaign's chain has promoted no student" in found.wrong and not found.repaired
    assert session.registry.alias("c", "champion") == "1"
    with pytest.raises(PromotionError, match="promoted no student"):
        _verified(session)


def _verified(session: Session) -> None:
    """As `campaign.verify_alias`, in this session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign, "open_session", lambda config: nullcontext(session))
        campaign.verify_alias(session.config)


def test_a_chain_with_a_forged_entry_moves_no_alias(tmp_path: Path) -> None:
    """Ten decisions, one of them rewritten: every command that reads the chain says so, and changes nothing."""
    session = _promoted(tmp_path)
    url = session.url("promotion")
    for number in range(9):
        held = DECISION.with_changes(verdict=Verdict.HOLD, report_fingerprint=str(number))
        record_decision(url, held, against=STUDENT, who="ann", time=datetime(2026, 11, 30, tzinfo=UTC))
    assert len(read_chain(url)) == 10 and follow_chain(session, move=True).repaired == ""
    for entry in sorted(Path(url, "decisions", "log").glob("*.json")):
        data = entry.read_bytes()
        entry.write_bytes(data.replace(b"students/one", b"students/evil"))
        with pytest.raises(DistillError, match="altered|are not those that an earlier"):
            follow_chain(session, move=True)
        entry.write_bytes(data)
    assert follow_chain(session, move=True).version == "1"
