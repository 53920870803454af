"""A changed model, head, snapshot, report, result or decision is refused by name where it is opened, or reads equal."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_distill.artifacts import Decision, EvalReport, LabelSetRef, SnapshotRef, StudentRef, Verdict
from ray_distill.config import HeadConfig, SnapshotConfig, TeacherConfig, parse_config
from ray_distill.evaluation.predict.texts import Written
from ray_distill.evaluation.report.assemble import content_fingerprint
from ray_distill.labels.model.manifest import TeacherIdentity
from ray_distill.models.core.checkpoint_files import read_facts
from ray_distill.models.core.fingerprint import state_digest
from ray_distill.models.core.model import Model
from ray_distill.models.heads.fit_head import fit_head, fitted_rows_url
from ray_distill.models.io.load import load_model, load_processor
from ray_distill.models.io.save import save_model
from ray_distill.models.io.trained import load_trained
from ray_distill.promotion.chain import read_chain, record_decision
from ray_distill.runtime.core.session import Session
from ray_distill.runtime.stages import evaluate
from ray_distill.runtime.stages.judge import Judged
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.snapshots.splits import SPLITS
from ray_distill.snapshots.take import take_snapshot
from ray_distill.tasks.catalogue import get_task
from ray_distill.teachers.engines import open_stored_teacher
from ray_distill.testing.models import write_tiny_causal_model, write_tiny_text_model
from ray_distill.tracking.none import InMemoryRegistry, NullTracker
from tests.labs.disturbances import Artifact, prove, prove_whole

CLASSES = ("bird", "cat", "dog")
LABELS = LabelSetRef(
    store="s", fingerprint="l", log_length=1, log_digest="d", snapshot=SnapshotRef(url="n", fingerprint="n")
)
TINY = {"text_classification": partial(write_tiny_text_model, classes=CLASSES), "causal_lm": write_tiny_causal_model}
STAGES = ("snapshot", "label", "train", "relabel")
#: Disturbances of each artifact.
EXAMPLES = 120
Pair = tuple[Artifact, Artifact]


def facts_of(model: Model) -> Any:
    """Return everything that decides a model's answers."""
    return (model.fingerprint, state_digest(model.module), model.classes, model.decision, model.processor.fingerprint)


def student(root: Path, task: str, seed: int) -> Artifact:
    """Return a student, opened as evaluation does."""
    base = load_model(str(TINY[task](root.with_name(f"{root.name}-base"), seed=seed)), task=task)
    digest = save_model(base, root, card="# A card\n", metadata={"learning_rate": 1e-3 * seed})
    ref = StudentRef(url=str(root), fingerprint=digest, arm="student", labels=LABELS)
    teacher = TeacherConfig(model="unused")
    return Artifact(
        root, lambda: (facts_of(load_trained(ref, teacher, task=task)), read_facts(ref.url)["learning_rate"])
    )


def teacher(root: Path, seed: int) -> Artifact:
    """Return a labelling teacher, opened as every process that labels does."""
    config = TeacherConfig(model=str(write_tiny_text_model(root, CLASSES, seed)))
    model = load_model(config, task="text_classification")
    stored = TeacherIdentity(fingerprint=model.fingerprint, checkpoint=str(model.describe["checkpoint"]))
    return Artifact(root, lambda: facts_of(open_stored_teacher(config, stored, task="text_classification").model))


def head(root: Path, encoder: Path, seed: int) -> Artifact:
    """Return a fitted head, opened with its encoder, and the rows that it was fitted on."""
    task, spec = get_task("text_classification"), TeacherConfig(model=str(encoder), head=HeadConfig())
    rng = np.random.default_rng(seed)
    rows = pa.table(
        {
            "row_id": pa.array([rng.bytes(16) for _ in range(18)], pa.binary(16)),
            "text": ["".join(rng.choice(list("abcdef"), 6)) for _ in range(18)],
        }
    )
    url = fit_head(
        spec,
        task.inputs.encode(rows, load_processor(spec, task=task.name)),
        np.arange(18) % 3,
        classes=CLASSES,
        prepare=task.answers.model.head_fit,
        collate=task.inputs.collate,
        seed=seed,
        url=str(root),
    )
    model = load_model(spec, task=task.name, head_url=url)
    stored = TeacherIdentity(fingerprint=model.fingerprint, checkpoint=str(model.describe["checkpoint"]), head=url)

    def read() -> Any:
        rows = pq.read_table(fitted_rows_url(url))
        return facts_of(open_stored_teacher(spec, stored, task=task.name).model), rows.to_pylist()

    return Artifact(Path(url), read)


def snapshot(root: Path, seed: int) -> Artifact:
    """Return a snapshot with quarantined rows, read whole."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("abcdef"), 9)) for _ in range(40)] + ["", None]
    root.mkdir()
    pq.write_table(pa.table({"text": texts, "label": [CLASSES[at % 3] for at in range(42)]}), root / "in.parquet")
    config = SnapshotConfig.model_validate(
        {
            "source": str(root / "in.parquet"),
            "shard_rows": 16,
            "max_bad_fraction": 0.5,
            "columns": {"label": "label"},
            "splits": {"train": 0.4, "validation": 0.2, "calibration": 0.2, "test": 0.2},
        }
    )
    ref = take_snapshot(config, input_column="text", seed=0, url=str(root / "snapshots"))

    def read() -> Any:
        opened = open_snapshot(ref)
        return opened.manifest, [opened.read(split) for split in SPLITS], opened.read_quarantine()

    return Artifact(Path(ref.url), read)


def session_at(root: Path) -> Session:
    """Return a session of a campaign without a tracker."""
    config = parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "output": str(root),
            "snapshot": {"source": "r"},
            "labels": {"teacher": {"model": "m:f"}},
        }
    )
    tracker = NullTracker()
    with tracker.run("c") as run:
        return Session(config=config, tracker=tracker, registry=InMemoryRegistry(), parent=run)


def results(root: Path, seed: int) -> Artifact:
    """Return the results of finished stages; one that is absent, or of other inputs, is made again."""
    session = session_at(root)
    stages = {name: {"rows": 17 * at, "share": 0.25, "url": f"{name}/{seed}"} for at, name in enumerate(STAGES)}

    def results_of() -> Any:
        for stage, result in stages.items():
            if session.done(stage, f"key-{stage}-{seed}") is None:
                session.finish(stage, f"key-{stage}-{seed}", result)
        return [session.done(stage, f"key-{stage}-{seed}") for stage in stages]

    results_of()
    return Artifact(root, results_of)


def report(root: Path, seed: int) -> Artifact:
    """Return a report with predictions and texts, read as promotion does for the page."""
    rng = np.random.default_rng(seed)
    answers = pa.table({"row_id": [rng.bytes(16) for _ in range(9)], "p": rng.random(9), "q": rng.random(9)})
    trained = StudentRef(url=f"students/{seed}", fingerprint=f"f{seed}", arm="student", labels=LABELS)
    plain = EvalReport(url=str(root / "report.json"), fingerprint="", task="causal_lm", student=trained, models={})
    written = (Written(prompt=f"once {seed}", answers={"student": "upon"}, reference="a time"),)
    judged = Judged(
        report=plain.with_changes(fingerprint=content_fingerprint(plain)), predictions=answers, written=written
    )
    made = evaluate.keep(judged, session_at(root).config)

    def read() -> Any:
        return evaluate.kept_predictions(made), evaluate.kept_texts(made)

    return Artifact(root, read)


def chain(root: Path, seed: int) -> Artifact:
    """Return a chain of four decisions."""
    for number, verdict in enumerate((Verdict.PROMOTE, Verdict.HOLD, Verdict.REJECT, Verdict.HOLD)):
        name = f"{seed}{number}"
        decided = Decision(
            verdict=verdict,
            reasons=(f"{name} has 0.{seed}",),
            student=StudentRef(url=f"models/{name}", fingerprint=name * 8, arm="student", labels=LABELS),
            report_fingerprint=name,
        )
        promoted = champion_of(root)
        record_decision(str(root), decided, against=promoted, who="ann", time=datetime(2026, 11, 30, tzinfo=UTC))
    return Artifact(root, lambda: read_chain(str(root)))


def champion_of(root: Path) -> StudentRef | None:
    """Return the student of the first entry."""
    found = read_chain(str(root))
    return found[0].decision.student if found else None


def two_heads(root: Path, seed: int) -> Artifact:
    """Return a head fitted on one encoder, whatever the seed."""
    return head(root, write_tiny_text_model(root.with_name(f"encoder-{seed}"), CLASSES, 7), seed)


MAKERS: Mapping[str, Callable[[Path, int], Artifact]] = {
    "student": lambda root, seed: student(root, "text_classification", seed),
    "language student": lambda root, seed: student(root, "causal_lm", seed),
    "teacher": teacher,
    "head": two_heads,
    "snapshot": snapshot,
    "results": results,
    "report": report,
    "chain": chain,
}


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return two artifacts of a kind, of the same shape and other content."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("artifacts")
    make = MAKERS[request.param]
    return make(root / "one", 1), make(root / "two", 2)


@pytest.mark.parametrize("pair", MAKERS, indirect=True)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_one_disturbed_file_is_refused_or_harmless(pair: Pair, data: st.DataObject) -> None:
    """Flipped, respelt, cut, emptied, deleted or swapped: named with a way out, or read as before."""
    prove(pair[0], pair[1].files, data)


@pytest.mark.parametrize("pair", [kind for kind in MAKERS if kind not in ("results", "chain")], indirect=True)
def test_another_artifact_at_the_same_place_is_refused(pair: Pair) -> None:
    """All files replaced by those of another of the same shape: its reference has another fingerprint."""
    prove_whole(pair[0], pair[1].files)
