"""Registration after the decision: what a rerun can repair, and what it cannot."""

from pathlib import Path

import pytest

from ray_distill.artifacts import Decision, EvalReport, LabelSetRef, SnapshotRef, StudentRef, Verdict
from ray_distill.config import parse_config
from ray_distill.errors import ChangedModel, PromotionError, RegistryRefused
from ray_distill.evaluation.report.assemble import content_fingerprint
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.promotion.chain import read_chain
from ray_distill.runtime.core.session import Session
from ray_distill.runtime.stages import evaluate, promote
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
UNSIGNED = EvalReport(url="r", fingerprint="", task="text_classification", student=STUDENT, models={})
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
def _decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only the registry be real: the decision is made, the page written, the model logged."""
    monkeypatch.setattr(promote, "_decide", lambda session, report: DECISION)
    monkeypatch.setattr(promote, "_decided", lambda session, chain, report: DECISION)
    monkeypatch.setattr(promote, "summary", lambda *parts: "")
    monkeypatch.setattr(evaluate, "publish", lambda *parts: "page")
    monkeypatch.setattr(evaluate, "log_student", lambda session, report: "models:/m-1")


def test_a_registry_that_refuses_is_an_error_that_a_rerun_does_not_promise_to_mend(tmp_path: Path) -> None:
    """The decision is named, what was refused is named, and the command fails."""
    session = _session(tmp_path, RegistryRefused("the alias is reserved"), alias="prod")
    with pytest.raises(RegistryRefused, match="PROMOTE is in the chain.*reserved.*gate.alias is prod") as error:
        promote.promote(session, REPORT)
    assert "run the command again to repair it" not in str(error.value)
    assert session.last("promote") is None


def test_a_registry_that_is_down_is_repaired_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is lost; the stage counts as unfinished."""
    assert promote.promote(_session(tmp_path, PromotionError("no answer")), REPORT) == DECISION
    assert "run the command again to repair it" in capsys.readouterr().err
    session = _session(tmp_path)
    promote.promote(session, REPORT)
    assert session.registry.alias("c", "champion") == "1"


def test_another_alias_or_name_is_followed_though_the_decision_stands(tmp_path: Path) -> None:
    """They decide nothing, so the verdict is not made again; the registry still gets them."""
    for gate in ({"alias": "champion"}, {"alias": "blue"}, {"model_name": "intent"}):
        session = _session(tmp_path, **gate)
        promote.promote(session, REPORT)
        assert session.registry.alias(gate.get("model_name", "c"), gate.get("alias", "champion")) == "1"
    again = _session(tmp_path, model_name="intent")
    promote.promote(again, REPORT)
    assert again.registry.alias("intent", "champion") is None  # skipped: it is done


def test_a_report_that_was_changed_is_not_decided_about(tmp_path: Path) -> None:
    """Another note, a better number: the content is no longer what its fingerprint states."""
    session = _session(tmp_path)
    with pytest.raises(PromotionError, match="was changed after the evaluation.*run `ray-distill evaluate`"):
        promote.promote(session, REPORT.with_changes(notes=("the student is excellent",)))
    assert session.registry.alias("c", "champion") is None


def test_a_student_that_nobody_judged_is_not_in_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files were swapped after the evaluation: refused before a decision is recorded; restored, it is promoted."""
    monkeypatch.undo()
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
    monkeypatch.setattr(promote, "absent_arms", lambda *parts: {})
    session, weights = _session(tmp_path), tmp_path / "judged" / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes((tmp_path / "swapped" / "model.safetensors").read_bytes())
    with pytest.raises(ChangedModel, match="judged is not the student that was trained: its files have sha256:"):
        promote._decide(session, report)
    assert read_chain(session.url("promotion")) == ()
    weights.write_bytes(before)
    assert promote._decide(session, report).verdict is Verdict.PROMOTE
    assert len(read_chain(session.url("promotion"))) == 1
