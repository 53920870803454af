"""What a student keeps of its teacher is measured once, and stored beside the students."""

import json
from pathlib import Path

import pytest
import transformers

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import Campaign, SnapshotConfig
from ray_distill.config.load import parse_config
from ray_distill.errors import DamagedFile
from ray_distill.labels.model.manifest import TeacherIdentity
from ray_distill.labels.store.label_store import open_store
from ray_distill.models.io.load import load_model
from ray_distill.models.students.build import build_student
from ray_distill.models.students.measured import NOTHING_MEASURED, Measured
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.snapshots.take import take_snapshot
from ray_distill.students import measure_start as measuring
from ray_distill.students.measure_start import count_some, measure_start
from ray_distill.students.process_group import Ranks
from ray_distill.students.run import TrainingJob, run_arms
from ray_distill.students.telemetry.reporter import SilentReporter
from ray_distill.testing.labels import fake_manifest, label_all
from tests.labs.tiny_tokenizers import SENTENCES, write_classifier

CLASSES = ("class0", "class1", "class2")
ALONE = Ranks(rank=0, world=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's checkpoint, a snapshot, and its labels."""
    folder = tmp_path_factory.mktemp("start")
    write_classifier(folder / "teacher", "WordPiece")
    lines = [{"text": f"{SENTENCES[row % 6]} {row}", "label": CLASSES[row % 3]} for row in range(120)]
    (folder / "traffic.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    columns = {"source": str(folder / "traffic.jsonl"), "columns": {"label": "label"}, "classes": CLASSES}
    settings = SnapshotConfig.model_validate(columns)
    snapshot = open_snapshot(take_snapshot(settings, input_column="text", seed=0, url=str(folder / "taken")))
    label_all(str(folder / "store"), fake_manifest(classes=3), snapshot)
    (folder / "labels.json").write_text(open_store(str(folder / "store")).ref(snapshot).to_json())
    return folder


def _config(home: Path, **model: object) -> Campaign:
    training = {"engine": "torch", "epochs": 1, "global_batch": 40, "micro_batch": 40, "evaluate_every": 3}
    return parse_config(
        {
            "campaign": "tiny",
            "task": "text_classification",
            "snapshot": {"source": "unused"},
            "labels": {"teacher": {"model": str(home / "teacher")}},
            "student": {"model": {"from": "teacher_layers", "keep": 1, **model}, "training": training},
        }
    )


def _measured(config: Campaign, snapshot: Snapshot, output: str) -> Measured:
    found = load_model(config.labels.teacher, task=config.task)
    return measure_start(config, snapshot, TeacherIdentity(fingerprint=found.fingerprint), output=output, ranks=ALONE)


def _labels(home: Path) -> LabelSetRef:
    return LabelSetRef.from_json((home / "labels.json").read_text())


def test_an_exported_student_has_the_tokens_of_the_train_rows(home: Path, tmp_path: Path) -> None:
    """Trained, exported and loaded by plain transformers; resuming the finished job measures nothing."""
    config = _config(home, vocabulary={"keep": 0.9})
    job = TrainingJob(config=config, labels=_labels(home), output=str(tmp_path), arms=("student",), resume=True)
    (ref,) = run_arms(job, SilentReporter())
    tokenizer = transformers.AutoTokenizer.from_pretrained(ref.url, local_files_only=True)
    module = transformers.AutoModelForSequenceClassification.from_pretrained(ref.url, local_files_only=True)
    assert len(tokenizer) == module.config.vocab_size < 180
    assert f'"tokens": {len(tokenizer)}' in (tmp_path / "student" / "README.md").read_text()
    (stored,) = (tmp_path / "measured").iterdir()
    stored.unlink()
    assert run_arms(job, SilentReporter()) == [ref] and not stored.exists()


def test_tokens_are_counted_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time they are read; other lengths of text are counted apart; a damaged file is refused."""
    config, snapshot = _config(home, vocabulary={"tokens": 100}), open_snapshot(_labels(home).snapshot)
    first = _measured(config, snapshot, str(tmp_path))
    assert first.counts is not None and first.counts.sum() > 500
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "count_tokens", None)
        again = _measured(_config(home, vocabulary={"keep": 0.5}), snapshot, str(tmp_path))
    assert again.counts is not None and again.counts.tolist() == first.counts.tolist()
    shorter = _measured(_config(home, vocabulary={"keep": 0.5}, max_length=5), snapshot, str(tmp_path))
    assert shorter.counts is not None and shorter.counts.sum() < first.counts.sum()
    assert len(list((tmp_path / "measured").iterdir())) == 2
    assert _measured(_config(home), snapshot, str(tmp_path / "none")).counts is None
    assert not (tmp_path / "none").exists()


def test_a_forecast_counts_some_shards(home: Path) -> None:
    """As many as have the rows; other measurements have stand-ins of the same size."""
    snapshot = open_snapshot(_labels(home).snapshot)
    some, every = (count_some(_config(home, vocabulary={"keep": 0.9}), snapshot, rows=rows) for rows in (1, 10**6))
    assert some.counts is not None and every.counts is not None
    assert 0 < some.counts.sum() <= every.counts.sum()
    assert count_some(_config(home, layers="importance"), snapshot, rows=1) == NOTHING_MEASURED


def test_layers_are_measured_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time they are read, and a student has them; another number of layers is measured apart."""
    config, snapshot = _config(home, keep=2, layers="importance"), open_snapshot(_labels(home).snapshot)
    first = _measured(config, snapshot, str(tmp_path))
    assert first.layers is not None and len(first.layers.kept) == 2 and len(first.layers.kl) == 1
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "choose_layers", None)
        assert _measured(config, snapshot, str(tmp_path)) == first
    assert _measured(_config(home, keep=1, layers="importance"), snapshot, str(tmp_path)) != first
    assert len(list((tmp_path / "measured").iterdir())) == 2
    model = build_student(
        config.student.model, task=config.task, classes=CLASSES, teacher=config.labels.teacher, seed=0, measured=first
    )
    assert list(model.describe["copied_layers"].values()) == list(first.layers.kept)
    assert model.describe["removed_layers"] == list(first.layers.removed)


def test_activations_are_measured_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every width: another share reads them."""
    snapshot, model = open_snapshot(_labels(home).snapshot), {"from": "teacher_width", "keep": None}
    first = _measured(_config(home, **model, width=0.5), snapshot, str(tmp_path))
    assert first.width is not None and len(first.width.channels) == 32 and min(first.width.channels) > 0
    monkeypatch.setattr(measuring, "measure_width", None)
    assert _measured(_config(home, **model, width=0.9), snapshot, str(tmp_path)) == first


def test_a_damaged_measurement_is_deleted_and_measured_again(home: Path, tmp_path: Path) -> None:
    """The message is followed to the letter."""
    config, snapshot = _config(home, vocabulary={"tokens": 100}), open_snapshot(_labels(home).snapshot)
    first = _measured(config, snapshot, str(tmp_path))
    (stored,) = (tmp_path / "measured").iterdir()
    whole = stored.read_text()
    stored.write_text(whole.replace('"counts": [0, ', '"counts": [7, ').replace("0,\n", "7,\n", 1))
    with pytest.raises(DamagedFile, match=r"measured/.*\.json is damaged: .*; delete it, and it is measured again"):
        _measured(config, snapshot, str(tmp_path))
    stored.unlink()
    again = _measured(config, snapshot, str(tmp_path))
    assert first.counts is not None and again.counts is not None
    assert first.counts.tolist() == again.counts.tolist() and stored.read_text() == whole
