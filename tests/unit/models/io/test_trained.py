"""A trained student is opened as it was trained, or refused by name."""

from pathlib import Path

import pytest

from ray_distill.artifacts import LabelSetRef, SnapshotRef, StudentRef
from ray_distill.config import TeacherConfig
from ray_distill.errors import ChangedModel
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.models.io.trained import load_trained, open_trained
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
