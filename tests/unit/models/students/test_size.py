"""Students of a size: at most so large, never smaller for a greater size, the same on every call, and built so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.errors import ConfigError
from ray_distill.examples.mnist import TEACHER_CONFIG
from ray_distill.models.core.fingerprint import count_parameters
from ray_distill.models.students.build import build_student
from ray_distill.models.students.measured import NOTHING_MEASURED
from ray_distill.models.students.size import Scalable, open_scalable
from ray_distill.testing.models import write_tiny_causal_model, write_tiny_image_model, write_tiny_seq2seq_model
from ray_distill.testing.models import write_tiny_text_model as write_text
from tests.labs.tiny_tokenizers import CLASSES, word_piece

DEEP = {"num_hidden_layers": 6, "num_attention_heads": 8, "hidden_size": 64, "intermediate_size": 256}
SIZES = tuple(0.02 * step for step in range(1, 50))


def _wordy(folder: Path) -> None:
    """Write a classifier most of whose parameters are token embeddings."""
    tokenizer = word_piece()
    shape = {"hidden_size": 4, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 4}
    size = {"vocab_size": len(tokenizer) + 3, "max_position_embeddings": 16}
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: at for at, name in enumerate(CLASSES)}}
    transformers.BertForSequenceClassification(transformers.BertConfig(**shape, **size, **names)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)


def _digits(folder: Path) -> None:
    shape = {name: value for name, value in TEACHER_CONFIG.items() if name != "num_channels"}
    write_tiny_image_model(folder, CLASSES, 0, architecture="resnet", **shape)  # type: ignore[arg-type]


#: Task and teacher by the rule that makes it smaller.
TEACHERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "copied layers": ("text_classification", lambda folder: write_text(folder, CLASSES, 0, **DEEP)),
    "drawn layers": ("image_classification", lambda folder: write_tiny_image_model(folder, CLASSES, 0, **DEEP)),  # type: ignore[arg-type]
    "tokens": ("text_classification", _wordy),
    "stages": ("image_classification", _digits),
    "groups of heads": ("causal_lm", lambda folder: write_tiny_causal_model(folder, 0, num_hidden_layers=6)),
    "two stacks": ("seq2seq", lambda folder: write_tiny_seq2seq_model(folder, 0, num_layers=8, num_decoder_layers=4)),
}


@pytest.fixture(scope="module", params=TEACHERS)
def scalable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scalable:
    task, write = TEACHERS[request.param]
    folder = tmp_path_factory.mktemp("teacher")
    write(folder)
    return _open(folder, task)


def _open(folder: Path, task: str, **values: Any) -> Scalable:
    base = StudentModel.model_validate(values)
    return open_scalable(
        base, task=task, classes=CLASSES, teacher=TeacherConfig(model=str(folder)), field="student.size"
    )


def _parameters(scalable: Scalable) -> dict[float, int]:
    """Return the parameters of every size that is reached."""
    found = {}
    for size in SIZES:
        try:
            found[size] = scalable.at(size).parameters
        except ConfigError as error:
            assert not found, "a greater size than one that was reached"
            assert "set student.size to" in str(error)
    return found


def test_a_greater_size_gives_no_smaller_student_and_none_is_exceeded(scalable: Scalable) -> None:
    """Over all sizes; from a half on there is a student of every architecture."""
    found = _parameters(scalable)
    assert max(SIZES) in found and 0.64 in found
    assert all(parameters <= size * scalable.parameters for size, parameters in found.items())
    assert list(found.values()) == sorted(found.values())


def test_the_same_teacher_gives_the_same_student(scalable: Scalable) -> None:
    """Another process that opens the teacher chooses the same fields, and reads no weights for it."""
    folder = Path(scalable.own.model)
    again = _open(folder, scalable.task)
    (folder / "model.safetensors").rename(folder / "weights")
    try:
        assert again.at(0.7) == scalable.at(0.7)
    finally:
        (folder / "weights").rename(folder / "model.safetensors")


@pytest.mark.parametrize("size", [0.34, 0.7])
def test_a_student_is_built_as_it_was_counted(scalable: Scalable, size: float) -> None:
    """Its modules have as many parameters; of tokens a few less, whose parts would be too many."""
    chosen = scalable.at(size)
    student = build_student(
        chosen.model,
        task=scalable.task,
        classes=CLASSES,
        teacher=TeacherConfig(model=scalable.own.model),
        seed=0,
        measured=NOTHING_MEASURED,
    )
    found = count_parameters(student.module)
    assert found == chosen.parameters or (chosen.model.kept_tokens and 0.9 * chosen.parameters < found)
    assert f"{chosen.parameters:,} of {scalable.parameters:,} parameters" in chosen.in_words
    assert scalable.config_of(chosen.model).to_dict().get("depths") == scalable_depths(chosen.model, student.module)


def scalable_depths(model: StudentModel, module: Any) -> Any:
    """Return the depths of a module of stages, None of others."""
    return module.config.to_dict().get("depths") if model.source == "config" else None


def test_tokens_fill_the_size(tmp_path: Path) -> None:
    """Within the embeddings of one token, between as many as must stay and all of them; layers by the same share."""
    _wordy(tmp_path)
    scalable = _open(tmp_path, "text_classification")
    for size in (0.5, 0.6, 0.7, 0.8):
        chosen = scalable.at(size)
        assert chosen.model.kept_tokens is not None
        assert size * scalable.parameters - 4 < chosen.parameters <= size * scalable.parameters
        assert chosen.model.keep == max(1, int(3 * size))
    assert scalable.at(0.999).model.kept_tokens is None


def test_stages_come_near_their_size(tmp_path: Path) -> None:
    """The digits' teacher: 0.05 of it is the shape that its students had by hand, and no size is missed by a sixth."""
    _digits(tmp_path)
    scalable = _open(tmp_path, "image_classification")
    assert scalable.at(0.05).model.overrides["depths"] == [1, 1]
    for size in SIZES[1:]:
        assert scalable.at(size).parameters > 5 / 6 * size * scalable.parameters


def test_layers_come_before_width(tmp_path: Path) -> None:
    """Down to a third of the layers, as wide as their teacher; then narrower ones, of which as many as fit."""
    write_text(tmp_path, CLASSES, 0, **DEEP)
    scalable = _open(tmp_path, "text_classification", max_length=32)
    wide, narrow = scalable.at(0.4).model, scalable.at(0.2).model
    assert (wide.source, wide.keep, wide.max_length) == ("teacher_layers", 2, 32)
    assert (narrow.source, narrow.keep, narrow.width) == ("teacher_width", 2, 0.625)


@pytest.mark.parametrize(
    ("task", "model", "found"),
    [
        ("text_classification", "ray_distill.testing.models:tiny_text_model", "is a function, which has no config"),
        ("image_classification", "swin", "neither a stack of equal layers nor has stages"),
        ("image_classification", "regnet", "neither a stack of equal layers nor has stages"),
    ],
)
def test_a_teacher_without_sizes_is_refused_with_another_way(tmp_path: Path, task: str, model: str, found: str) -> None:
    """The message names the setting that describes a student of it."""
    write_tiny_image_model(tmp_path, CLASSES, 0)
    configs = {"swin": transformers.SwinConfig, "regnet": transformers.RegNetConfig}
    if model in configs:
        configs[model](num_labels=3).save_pretrained(tmp_path)
        model = str(tmp_path)
    with pytest.raises(ConfigError, match=rf"student\.size: .*{found}.*set student\.model instead"):
        base = StudentModel()
        teacher = TeacherConfig(model=model)
        open_scalable(base, task=task, classes=CLASSES, teacher=teacher, field="student.size").at(0.5)
