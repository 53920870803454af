"""The token embeddings of a teacher are read alone, from any checkpoint that has them at a known place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ray_distill.config import HeadConfig, StudentModel, TeacherConfig
from ray_distill.errors import ModelError
from ray_distill.models.io import embedding_table
from ray_distill.models.io.embedding_table import check_embeddings, read_neighbours
from ray_distill.models.io.save import save_model
from ray_distill.models.students.build import build_student
from ray_distill.testing.models import write_tiny_image_model, write_tiny_text_model
from tests.labs.tiny_tokenizers import TOKENIZERS, make_alike, write_classifier


def table_of(folder: Path) -> torch.Tensor:
    """The table as transformers reads it, with the whole model."""
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    return model.get_input_embeddings().weight.detach()


def near_by_hand(folder: Path, word: str) -> dict[str, float]:
    """Cosines of the words, all with all."""
    words = embedding_table.whole_words(transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True))
    vectors = table_of(folder)[list(words)].numpy()
    unit = vectors - vectors.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    names = list(words.values())
    cosines = dict(zip(names, unit @ unit[names.index(word)], strict=True))
    found = sorted((name for name in names if name != word and cosines[name] >= 0.4), key=lambda name: -cosines[name])
    total = sum(cosines[name] for name in found[:8])
    return {name: float(cosines[name]) / total for name in found[:8]}


@pytest.mark.parametrize("kind", [kind for kind in TOKENIZERS if kind != "Unigram"])
def test_neighbours_are_those_of_the_models_own_table(tmp_path: Path, kind: str) -> None:
    """Of the table that the whole model has, whatever its family calls it."""
    teacher = write_classifier(tmp_path / "teacher", kind)
    make_alike(tmp_path / "teacher", "parcel", "invoice", "engine")
    check_embeddings(teacher)
    found = dict(read_neighbours(teacher)("parcel"))
    assert {"invoice", "engine"} <= set(found)
    assert found == pytest.approx(near_by_hand(tmp_path / "teacher", "parcel"), rel=1e-4)


def test_an_encoder_in_half_precision_and_in_several_files_is_read(tmp_path: Path) -> None:
    """The bare model has no prefix, and the table is in one of the files."""
    write_classifier(tmp_path / "teacher", "WordPiece")
    make_alike(tmp_path / "teacher", "parcel", "invoice")
    encoder = transformers.AutoModel.from_pretrained(tmp_path / "teacher", dtype=torch.bfloat16)
    encoder.save_pretrained(tmp_path / "encoder", max_shard_size="20KB")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "encoder")
    assert len(list((tmp_path / "encoder").glob("*.safetensors"))) > 1
    teacher = TeacherConfig(model=str(tmp_path / "encoder"), head=HeadConfig())
    check_embeddings(teacher)
    assert read_neighbours(teacher)("parcel")[0][0] == "invoice"


def test_a_former_student_teaches_with_its_own_table(tmp_path: Path) -> None:
    """A classifier of pooled states, as this package saves it; also from a URL, whose files are downloaded."""
    write_classifier(tmp_path / "teacher", "WordPiece")
    make_alike(tmp_path / "teacher", "parcel", "invoice")
    encoder = transformers.AutoModel.from_pretrained(tmp_path / "teacher")
    encoder.save_pretrained(tmp_path / "encoder")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "teacher").save_pretrained(tmp_path / "encoder")
    student = build_student(
        StudentModel.model_validate({"from": "teacher_layers", "keep": 1}),
        task="text_classification",
        classes=("a", "b"),
        teacher=TeacherConfig(model=str(tmp_path / "encoder"), head=HeadConfig(pool="mean")),
        seed=0,
    )
    save_model(student, tmp_path / "student", card="", metadata={})
    teacher = TeacherConfig(model=str(tmp_path / "student"))
    check_embeddings(teacher)
    assert read_neighbours(teacher)("parcel")[0][0] == "invoice"


def test_a_checkpoint_at_a_url_is_downloaded(tmp_path: Path) -> None:
    """Its weights are not read by the check, which needs the small files alone."""
    import fsspec

    write_classifier(tmp_path / "teacher", "WordPiece")
    make_alike(tmp_path / "teacher", "parcel", "invoice")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "teacher"), "/neighbours/teacher", recursive=True)
    teacher = TeacherConfig(model="memory://neighbours/teacher")
    check_embeddings(teacher)
    assert read_neighbours(teacher)("parcel")[0][0] == "invoice"
    memory.rm("/neighbours/teacher/model.safetensors")
    with pytest.raises(ModelError, match="is not a checkpoint: it has no .*safetensors"):
        read_neighbours(teacher)
    memory.rm("/neighbours", recursive=True)
    with pytest.raises(ModelError, match="there is no checkpoint at memory://neighbours/teacher"):
        check_embeddings(teacher)


def _renamed(folder: Path, change: Any) -> None:
    state = change(load_file(folder / "model.safetensors"))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_teacher_without_a_table_at_a_known_place_is_refused(tmp_path: Path) -> None:
    """By the check already, with the reason."""
    folder = tmp_path / "teacher"
    write_classifier(folder, "WordPiece")
    for model, message in {
        "ray_distill.testing.models:teacher": "is a function, whose token embeddings have no known place",
        str(tmp_path / "none"): "there is no checkpoint folder",
        str(write_tiny_image_model(tmp_path / "images", ("a", "b"), 0)): "has no tokenizer",
    }.items():
        for function in (check_embeddings, read_neighbours):
            with pytest.raises(ModelError, match=message):
                function(TeacherConfig(model=model))
    _renamed(folder, lambda state: {name.replace("word_embeddings", "words"): state[name] for name in state})
    for function in (check_embeddings, read_neighbours):
        with pytest.raises(
            ModelError, match="no single table of token embeddings embeddings.word_embeddings.weight; f.*none"
        ):
            function(TeacherConfig(model=str(folder)))
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="the weights of .* cannot be read"):
        check_embeddings(TeacherConfig(model=str(folder)))


def test_a_tokenizer_of_pieces_alone_is_refused(tmp_path: Path) -> None:
    """No view could be made: every token of it is one character."""
    model = str(write_tiny_text_model(tmp_path / "teacher", ("a", "b"), 0))
    with pytest.raises(ModelError, match="the tokenizer of .* has no tokens that are whole words"):
        read_neighbours(TeacherConfig(model=model))


def test_nothing_but_the_table_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher may be larger than the machine that freezes rows."""
    teacher, read = write_classifier(tmp_path / "teacher", "WordPiece"), list[str]()

    class Watched:
        def __init__(self, path: Path, framework: str) -> None:
            self._file = original(path, framework=framework)

        def __enter__(self) -> "Watched":
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def get_tensor(self, key: str) -> torch.Tensor:
            read.append(key)
            return self._file.get_tensor(key)

    original = embedding_table.safe_open
    monkeypatch.setattr(embedding_table, "safe_open", Watched)
    check_embeddings(teacher)
    assert read == []
    read_neighbours(teacher)
    assert read == ["bert.embeddings.word_embeddings.weight"]
