"""Whole campaigns of language models, from a YAML file to a verdict; again with nothing left to do; newer texts."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ray_distill.artifacts import EvalReport, LabelSetRef, SnapshotRef, StudentRef, Verdict
from ray_distill.config import Campaign
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.labels.store.reader import open_label_set
from ray_distill.models.io.load import load_model
from ray_distill.promotion.chain import champion, read_chain
from ray_distill.runtime import campaign
from ray_distill.runtime.stages.preflight import check
from ray_distill.storage import files
from ray_distill.storage.portable import located
from tests.labs import language as lab
from tests.labs.campaign import committed_rows, load

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

ARMS = {"student", "baseline_hard_labels", "baseline_teacher_hard_labels"}
CHAT: dict[str, Any] = {
    "snapshot__columns": {"text": "messages"},
    "labels__signal": {"estimator": "hybrid", "k": 8, "draws": 12},
    "student__training__packed": 128,
    "student__training__epochs": 1,
}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A campaign up to its evaluation."""

    config: Campaign
    snapshot: SnapshotRef
    labels: LabelSetRef
    students: dict[str, StudentRef]
    report: EvalReport


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    lab.write_teacher(folder / "teacher")
    return folder


def text_campaign(home: Path) -> Campaign:
    source = lab.write_texts(home / "texts.jsonl", lab.sentences(300, seed=3))
    return load(home / "text.yaml", lab.config_of(home / "text", source, home / "teacher"))


def chat_campaign(home: Path) -> Campaign:
    source = lab.write_conversations(home / "chats.jsonl", lab.conversations(200, seed=4))
    teacher = {"model": str(home / "teacher"), "language": {"format": "chat"}}
    return load(
        home / "chat.yaml", lab.config_of(home / "chat", source, home / "teacher", labels__teacher=teacher, **CHAT)
    )


def evaluated(config: Campaign) -> Trained:
    """Stage after stage, each from the reference the one before gave."""
    check(config)
    snapshot = campaign.snapshot(config)
    labels = campaign.label(config, snapshot)
    students = campaign.train(config, labels)
    report = campaign.evaluate(config, students)
    return Trained(config=config, snapshot=snapshot, labels=labels, students=students, report=report)


@pytest.fixture(scope="module")
def text(home: Path) -> Trained:
    """Plain texts, top-k labels in their compact form, padded."""
    return evaluated(text_campaign(home))


@pytest.fixture(scope="module")
def chat(home: Path) -> Trained:
    """Nested conversations, hybrid labels, packed."""
    return evaluated(chat_campaign(home))


@pytest.mark.parametrize(("name", "rows"), [("text", 300), ("chat", 200)])
def test_every_stage_hands_over_what_the_next_can_open(name: str, rows: int, request: pytest.FixtureRequest) -> None:
    """Every document is labelled; each arm loads with plain transformers and reads the teacher's tokens."""
    found: Trained = request.getfixturevalue(name)
    labels = open_label_set(found.labels)
    assert labels.rows == rows and labels.manifest.space == AnswerSpace(size=264)
    assert set(found.students) == ARMS
    teacher = load_model(found.config.labels.teacher, task="causal_lm")
    for ref in found.students.values():
        plain, words = AutoModelForCausalLM.from_pretrained(ref.url), AutoTokenizer.from_pretrained(ref.url)
        ids = torch.tensor([words("the cat sees").input_ids])
        ours = load_model(ref.url, task="causal_lm")
        with torch.no_grad():
            torch.testing.assert_close(plain(ids).logits, ours.module(ids).logits)
        assert ours.processor.fingerprint == teacher.processor.fingerprint
        assert len(plain.model.layers) == 1


@pytest.mark.parametrize("name", ["text", "chat"])
def test_the_report_judges_every_model_by_its_tokens(name: str, request: pytest.FixtureRequest) -> None:
    """Each has an NLL inside its interval; the teacher's is lowest of texts, which it learnt, unlike conversations."""
    report = request.getfixturevalue(name).report
    assert EvalReport.from_dict(located(files.read_json(report.url), report.output)) == report
    assert set(report.models) == ARMS | {"teacher"}
    nll = {arm: model.metrics["nll"] for arm, model in report.models.items()}
    assert all(one.low <= one.value <= one.high and one.n > 0 for one in nll.values())
    if name == "text":
        assert min(nll, key=lambda arm: nll[arm].value) == "teacher"
    assert report.models["student"].efficiency.parameters < report.models["teacher"].efficiency.parameters


def test_a_second_time_every_stage_is_skipped(text: Trained, capfd: pytest.CaptureFixture[str]) -> None:
    """The same references come back, and each stage says that it was skipped."""
    again = evaluated(text.config)
    assert again == text
    told = capfd.readouterr().err
    for stage in ("snapshot", "label", "train", "evaluate"):
        assert f'"skipped": "{stage}"' in told


def test_one_changed_document_is_relabelled_alone(text: Trained, home: Path) -> None:
    """The teacher is asked for its row and no other; all rows can be read; texts of one kind have not drifted."""
    texts = lab.sentences(300, seed=3)
    newer = lab.write_texts(home / "newer.jsonl", [*texts[:150], texts[150] + " the end.", *texts[151:]])
    before = committed_rows(text.config.store_url)
    report = campaign.relabel(text.config, str(newer))
    assert (report.rows_total, report.rows_reused, report.rows_labelled, report.rows_quarantined) == (300, 299, 1, 0)
    assert committed_rows(text.config.store_url) - before == 1
    assert open_label_set(report.labels).rows == 300
    assert report.drift is not None and not report.drift.alarm, report.drift


def test_other_texts_are_found_to_have_drifted(text: Trained, home: Path) -> None:
    """Letters of another kind: the teacher's tokens move, and it is said."""
    other = ["".join(reversed(one)) for one in lab.sentences(150, seed=9)]
    report = campaign.relabel(text.config, str(lab.write_texts(home / "other.jsonl", other)))
    assert report.rows_labelled == 150
    assert report.drift is not None and report.drift.alarm and report.recommendation != "nothing", report.drift


def test_a_whole_run_ends_in_a_verdict(text: Trained) -> None:
    """`run` skips what is done, decides, and the chain holds the decision; a second run never starts Ray."""
    result = campaign.run(text.config)
    assert result.labels == text.labels and result.students == text.students
    assert result.decision.verdict is Verdict.PROMOTE, result.decision.reasons
    chain = read_chain(f"{text.config.output_url}/promotion")
    assert [entry.decision for entry in chain] == [result.decision]
    assert champion(chain) == result.students["student"]
    assert campaign.run(text.config) == result


def test_a_run_with_nothing_to_do_never_opens_the_teacher(text: Trained) -> None:
    """Its weights are damaged, and as old and large as before: nobody notices."""
    weights = Path(text.config.labels.teacher.model) / "model.safetensors"
    before, times = weights.read_bytes(), weights.stat()
    weights.write_bytes(bytes(len(before)))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    try:
        assert evaluated(text.config) == text
    finally:
        weights.write_bytes(before)
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
