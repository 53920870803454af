"""Language models judged from a real snapshot and published: in this process, without a cluster."""

import json
import shutil
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from ray_distill.artifacts import EvalReport, LabelSetRef, StudentRef
from ray_distill.config import Campaign, TeacherConfig
from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ChangedModel, EvaluationError, ModelError
from ray_distill.labels.model.manifest import TeacherIdentity
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.promotion.gate import decide
from ray_distill.runtime.core.session import Session
from ray_distill.runtime.stages.count_views import describe_views
from ray_distill.runtime.stages.evaluate import _drift, keep, log_student, publish
from ray_distill.runtime.stages.judge import judge_students
from ray_distill.snapshots.take import take_snapshot
from ray_distill.storage import files
from ray_distill.testing.models import write_tiny_causal_model
from ray_distill.tracking.none import InMemoryRegistry, NullTracker

TEXTS = [f"document {n} of {'cats' if n % 2 else 'owls'}: " + "la " * (n % 7) for n in range(60)]
CHATS = [[{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}] for text in TEXTS]

#: What a card says of an arm's training.
FACTS = {
    "learning_rate": 1e-3,
    "training_rows": 900,
    "steps": 10,
    "global_batch": 16,
    "passes": 1.0,
    "rows_by_teacher": 900,
    "rows_by_true_labels": 0,
}


@dataclass
class Recorded:
    """A run that keeps what it is given."""

    run_id: str = "run"
    values: dict = field(default_factory=dict)
    artifacts: dict = field(default_factory=dict)
    models: list = field(default_factory=list)

    def metrics(self, values, step=0):
        self.values |= values

    def artifact(self, path, folder=""):
        self.artifacts[path.name] = path.read_bytes() if path.is_file() else sorted(p.name for p in path.iterdir())

    def model(self, path, **about):
        self.models.append(about)
        return "models:/m"


def campaign(root, chat=False, **evaluation):
    language = {"format": "chat" if chat else "text"}
    teacher = write_tiny_causal_model(root / "teacher", 0)
    rows = [{"text": row, "kind": "abc"[n % 3]} for n, row in enumerate(CHATS if chat else TEXTS)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Campaign.model_validate(
        {
            "campaign": "smol",
            "task": "text_classification",
            "output": str(root / "out"),
            "snapshot": {
                "source": str(root / "rows.jsonl"),
                "columns": {"slices": ["kind"]},
                "splits": {"train": 0.1, "validation": 0.1, "calibration": 0.1, "test": 0.7},
            },
            "labels": {"teacher": {"model": str(teacher), "language": language}},
            "evaluation": {"bootstrap": 100, "latency_requests": 10, "batch": 4, **evaluation},
        }
    )
    return config.model_copy(update={"task": "causal_lm"})


def students(config, root, **refs):
    snapshot = take_snapshot(
        config.snapshot,
        input_column="text",
        seed=0,
        url=str(root / "snapshots"),
        nested=config.labels.teacher.language.format == "chat",
    )
    found = {}
    for seed, arm in enumerate(("student", "baseline_hard_labels"), 1):
        base = write_tiny_causal_model(root / f"base-{arm}", seed)
        spec = TeacherConfig(model=str(base), language=LanguageConfig(format=config.labels.teacher.language.format))
        model = load_model(spec, task="causal_lm")
        digest = save_model(model, root / arm, card="#", metadata=FACTS)
        found[arm] = StudentRef(
            url=str(root / arm),
            fingerprint=digest,
            arm=arm,
            labels=LabelSetRef(store="s", fingerprint="l", log_length=1, log_digest="d", snapshot=snapshot),
        )
    return snapshot, found


def judged(root, **settings):
    config = campaign(root, **settings)
    snapshot, refs = students(config, root)
    url = str(root / "out" / "evaluations" / "one" / "report.json")
    labelled_by = TeacherIdentity(fingerprint=load_model(config.labels.teacher, task="causal_lm").fingerprint)
    return config, judge_students(
        config, snapshot, refs, labelled_by=labelled_by, champion=refs["baseline_hard_labels"], url=url, threads=1
    )


def published(config, found):
    """What reaches the tracking server and the folder of the report."""
    session = Session(config=config, tracker=NullTracker(), registry=InMemoryRegistry(), parent=Recorded())
    report = EvalReport.from_dict(keep(found, config).to_dict())
    page = publish(session, session.parent, report, decide(report, config.gate))
    return session, files.read_bytes(page).decode()


def test_the_page_states_the_views_by_kind():
    """How many there are, of how many rows, and how many teach; nothing without views."""
    counts = {"rows": 1200, "views": 2400, "kept": {"cut": 1100, "neighbours": 90}, "left_out": {"unchanged": 1210}}
    made = "1,190 train rows are views of the other 1,200 (cut 1,100, neighbours 90)"
    manifest = SimpleNamespace(view_counts=counts)
    assert describe_views(manifest, None) == {"views": made}
    assert describe_views(manifest, {"teach": 1190, "unsure": 0}) == {
        "views": f"{made}; 1,190 views of train rows teach the student"
    }
    assert describe_views(manifest, {"teach": 1000, "unsure": 190})["views"].startswith(f"{made}; 1,000 views of")
    assert describe_views(SimpleNamespace(view_counts=None), None) == {}


def test_texts_are_judged_published_and_logged(tmp_path):
    """Measures of every arm, slices, asked-for damage, continuations of the test split: on the page and the run."""
    config, found = judged(tmp_path, prompts="test", new_tokens=6, corruptions=["typos"], severities=[1])
    report = found.report
    assert set(report.models) == {"teacher", "student", "baseline_hard_labels", "champion"}
    assert report.models["teacher"].metrics["kl_from_teacher"].value == pytest.approx(0, abs=1e-6)
    student = report.models["student"]
    assert student.metrics["kl_from_teacher"].low > 0 and student.metrics["tokens_per_second"].value > 0
    assert set(student.robustness["typos"]["1"]) == {"nll", "kl_from_teacher"}
    assert not report.models["baseline_hard_labels"].robustness and report.models["champion"].robustness
    session, page = published(config, found)
    assert {"report.html", "report.json", "plots", "generations.json"} == set(session.parent.artifacts)
    assert session.parent.artifacts["plots"] == ["nll.png", "positions.png", "reliability.png", "robustness.png"]
    written = json.loads(session.parent.artifacts["generations.json"])
    assert written["new_tokens"] == 6 and len(written["prompts"]) == 5
    assert set(written["prompts"][0]["answers"]) == {"teacher", "student", "champion"}
    assert "document" in written["prompts"][0]["prompt"] and written["prompts"][0]["reference"]
    assert "900 rows in 10 steps of 16 (1 passes), 900 of them by the teacher and 0 by true labels" in page
    assert "views of the other" not in page
    assert "What they write" in page and session.parent.artifacts["report.html"].decode() == page
    assert session.parent.values["nll"] == student.metrics["nll"].value
    assert {"teacher_nll", "kl_from_teacher_at_0_15", "perplexity"} <= set(session.parent.values)
    assert log_student(session, report) == "models:/m"
    (about,) = session.parent.models
    assert (about["task"], about["example"]) == ("causal_lm", ["A student is"])
    shutil.copytree(report.models["baseline_hard_labels"].url, report.student.url, dirs_exist_ok=True)
    with pytest.raises(ChangedModel, match="is not the student that was trained"):
        log_student(session, report)
    assert len(session.parent.models) == 1


def test_conversations_are_judged_and_no_text_of_theirs_leaves(tmp_path):
    """Nobody asked for texts: neither the page, nor an artifact, nor the logged example holds a word of a row."""
    config, found = judged(tmp_path, chat=True)
    assert found.written == () and found.report.models["student"].metrics["nll"].value > 0
    session, page = published(config, found)
    assert "generations.json" not in session.parent.artifacts and "What they write" not in page
    log_student(session, found.report)
    (about,) = session.parent.models
    assert json.loads(about["example"][0])[0]["role"] == "user"
    kept = [page, json.dumps(about["example"]), session.parent.artifacts["report.json"].decode()]
    assert not any("document" in text and "owls" in text for text in kept)


def test_what_cannot_be_done_is_said_before_anything_is_measured(tmp_path):
    """A prompt that cannot be continued; a corruption of conversations."""
    with pytest.raises(ModelError, match="nothing can follow"):
        judged(tmp_path, prompts=["x" * 200])
    (tmp_path / "chat").mkdir()
    with pytest.raises(EvaluationError, match=r"has no typos; it has none \(for conversations\)"):
        judged(tmp_path / "chat", chat=True, corruptions=["typos"])


@pytest.mark.parametrize("last", [None, {"key": "k", "result": {"drift": None}}])
def test_a_report_has_no_drift_where_nothing_was_compared(last: Any) -> None:
    """Nothing was relabelled, or the teacher failed on the newer traffic, or there were too few rows."""
    session: Any = SimpleNamespace(last=lambda stage: last)
    assert _drift(session) is None
