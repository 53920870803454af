"""A trained student is opened as it was trained, or refused by name."""

from pathlib import Path

import pytest

from ray_distill.artifacts import LabelSetRef, SnapshotRef, StudentRef
from ray_distill.config import TeacherConfig
from ray_distill.errors import ChangedModel, ModelError
from ray_distill.labels.model.manifest import TeacherIdentity
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.models.io.trained import load_labelling_teacher, load_trained, open_trained
from ray_distill.teachers.engines import open_stored_teacher
from ray_distill.testing.models import write_tiny_text_model

TASK = "text_classification"
LABELS = LabelSetRef(
    store="s", fingerprint="l", log_length=1, log_digest="d", snapshot=SnapshotRef(url="n", fingerprint="n")
)


def _student(folder: Path, name: str, seed: int) -> StudentRef:
    base = write_tiny_text_model(folder / f"base-{name}", ["a", "b"], seed)
    digest = save_model(load_model(str(base), task=TASK), folder / name, card="#", metadata={})
    return StudentRef(url=str(folder / name), fingerprint=digest, arm="student", labels=LABELS)


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "swapped"])
def test_a_student_that_was_changed_is_refused_by_name(tmp_path: Path, name: str, how: str) -> None:
    """A byte, an end, another student's file: each is found before the model is used, and restoring it is enough."""
    ref, other = _student(tmp_path, "one", 1), _student(tmp_path, "other", 2)
    assert load_trained(ref, TeacherConfig(model="unused"), task=TASK).task == TASK
    path = tmp_path / "one" / name
    before, foreign = path.read_bytes(), Path(other.url, name).read_bytes() + b" "
    path.write_bytes({"flipped": _flip(before), "cut": before[:-1], "swapped": foreign}[how])
    with pytest.raises(ChangedModel, match=f"one is not the student that was trained: .*{ref.fingerprint}.*Restore"):
        load_trained(ref, TeacherConfig(model="unused"), task=TASK)
    with pytest.raises(ChangedModel), open_trained(ref):
        pass
    path.write_bytes(before)
    load_trained(ref, TeacherConfig(model="unused"), task=TASK)


def test_a_card_may_change(tmp_path: Path) -> None:
    """It decides no answer."""
    ref = _student(tmp_path, "one", 1)
    (tmp_path / "one" / "README.md").write_text("another card")
    load_trained(ref, TeacherConfig(model="unused"), task=TASK)


@pytest.mark.parametrize("how", ["flipped", "cut", "swapped"])
def test_a_teacher_that_changed_after_it_labelled_is_refused_by_name(tmp_path: Path, how: str) -> None:
    """Each process that labels and the evaluation compare it with the store; a copy in another folder is the same."""
    folder = write_tiny_text_model(tmp_path / "teacher", ["a", "b"], 1)
    other = write_tiny_text_model(tmp_path / "other", ["a", "b"], 2)
    config = TeacherConfig(model=str(folder))
    stored = TeacherIdentity(fingerprint=load_model(config, task=TASK).fingerprint, model="the/teacher")
    assert load_labelling_teacher(config, stored, task=TASK).fingerprint == stored.fingerprint
    assert open_stored_teacher(config, stored, task=TASK).fingerprint == stored.fingerprint
    path = folder / "model.safetensors"
    before, foreign = path.read_bytes(), (other / "model.safetensors").read_bytes()
    path.write_bytes({"flipped": _flip(before), "cut": before[:-1], "swapped": foreign}[how])
    refused = ModelError if how == "cut" else ChangedModel  # a file that cannot be read is named for that
    for load in (load_labelling_teacher, open_stored_teacher):
        with pytest.raises(refused, match="teacher"):
            load(config, stored, task=TASK)
    path.write_bytes(before)
    load_labelling_teacher(config, stored, task=TASK)


def test_a_teacher_whose_labels_another_engine_made_is_compared_by_its_files(tmp_path: Path) -> None:
    """That engine's fingerprint is not transformers' one."""
    config = TeacherConfig(model=str(write_tiny_text_model(tmp_path / "teacher", ["a", "b"], 1)))
    digest = str(load_model(config, task=TASK).describe["checkpoint"])
    stored = TeacherIdentity(fingerprint="an engine's", model=config.model, engine="vllm 1", checkpoint=digest)
    load_labelling_teacher(config, stored, task=TASK)
    with pytest.raises(ChangedModel, match="is not the teacher that made the labels.*Restore its files"):
        load_labelling_teacher(config, stored.with_changes(checkpoint="sha256:other"), task=TASK)
