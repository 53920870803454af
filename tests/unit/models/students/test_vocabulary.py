"""Students with some of their teacher's tokens: exact where a text's tokens are all kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from ray_distill.config import SnapshotConfig, StudentModel, TeacherConfig
from ray_distill.errors import ConfigError
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_processor
from ray_distill.models.io.save import save_model
from ray_distill.models.students.build import build_student
from ray_distill.models.students.measured import NOTHING_MEASURED, Measured
from ray_distill.models.students.vocabulary import Counts, count_tokens
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.snapshots.take import take_snapshot
from ray_distill.tasks.catalogue import get_task
from ray_distill.testing.models import write_tiny_causal_model, write_tiny_image_model, write_tiny_text_model
from tests.labs.tiny_tokenizers import ARCHITECTURES, CLASSES, SENTENCES, write_classifier

TEXT = "text_classification"


@pytest.fixture(scope="module", params=ARCHITECTURES)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TeacherConfig:
    return write_classifier(tmp_path_factory.mktemp("teacher"), request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> TeacherConfig:
    return write_classifier(tmp_path_factory.mktemp("bert"), "WordPiece")


def _counts(teacher: TeacherConfig, texts: Sequence[str]) -> Counts:
    processor: Any = load_processor(teacher, task=TEXT)
    tokens = processor.texts(list(texts))["input_ids"].values
    return np.bincount(tokens, minlength=len(processor.tokenizer)).astype(np.int64)


def _student(teacher: TeacherConfig, counts: Counts | None, task: str = TEXT, **values: Any) -> Model:
    return build_student(
        StudentModel.model_validate({"from": "teacher_layers", "keep": 3, **values}),
        task=task,
        classes=CLASSES,
        teacher=teacher,
        seed=1,
        measured=NOTHING_MEASURED if counts is None else Measured(counts=counts),
    )


def _plain_logits(folder: str | Path, texts: Sequence[str]) -> torch.Tensor:
    """Logits as plain transformers gives them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    with torch.inference_mode():
        logits: torch.Tensor = model(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits
    return logits


def test_texts_of_kept_tokens_have_the_teachers_logits(teacher: TeacherConfig, tmp_path: Path) -> None:
    """All layers and fewer tokens: saved, and loaded by plain transformers, the student is its teacher on such texts,
    and on others it is not."""
    student = _student(teacher, _counts(teacher, SENTENCES[:3]), vocabulary={"keep": 1.0})
    facts = student.describe["vocabulary"]
    assert facts["tokens"] < facts["teacher_tokens"] and facts["share_of_train_tokens"] == 1
    assert student.module.get_input_embeddings().weight.shape == (facts["tokens"], 32)
    save_model(student, tmp_path, card="", metadata={})
    for texts, same in ((SENTENCES[:3], True), (SENTENCES[3:], False)):
        apart = (_plain_logits(tmp_path, texts) - _plain_logits(teacher.model, texts)).abs().max()
        assert apart < 1e-6 if same else apart > 1e-3


def test_what_is_kept_covers_the_share_and_no_more(bert: TeacherConfig) -> None:
    """Without its least frequent token that could go, the rest would cover less than the share."""
    counts = _counts(bert, SENTENCES)
    for keep in (0.7, 0.9, 0.99):
        facts = _student(bert, counts, vocabulary={"keep": keep}).describe["vocabulary"]
        assert facts["share_of_train_tokens"] >= keep
        fewer = _student(bert, counts, vocabulary={"tokens": facts["tokens"] - 1}).describe["vocabulary"]
        assert fewer["tokens"] == facts["tokens"] - 1 and fewer["share_of_train_tokens"] < keep


def test_a_number_of_tokens_is_the_number(bert: TeacherConfig) -> None:
    """Counted or not, so that a dry run has the student's size; more than there are is all of them."""
    for counts in (None, _counts(bert, SENTENCES)):
        model = _student(bert, counts, vocabulary={"tokens": 100})
        assert model.module.config.vocab_size == len(model.processor.tokenizer) == 100  # type: ignore[attr-defined]
        every = _student(bert, counts, vocabulary={"tokens": 10**6}).module.config.vocab_size
        assert every == len(load_processor(bert, task=TEXT).tokenizer)  # type: ignore[attr-defined]


def test_a_student_from_the_config_has_fewer_tokens_too(bert: TeacherConfig) -> None:
    """Its embeddings are drawn, as many as tokens are kept."""
    values = {"from": "config", "keep": None, "overrides": {"hidden_size": 16}, "vocabulary": {"tokens": 90}}
    assert _student(bert, None, **values).module.get_input_embeddings().weight.shape == (90, 16)


def test_position_ids_stay_where_they_are(tmp_path: Path) -> None:
    """RoBERTa counts positions from the padding id, which is kept with all ids before it."""
    student = _student(write_classifier(tmp_path, "BPE"), None, vocabulary={"tokens": 300})
    assert student.module.config.pad_token_id == student.processor.tokenizer.pad_token_id == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        (TEXT, {"vocabulary": {"tokens": 12}}, r"vocabulary\.tokens: 12 is too few, found \d+ .*set it to \d+ or more"),
        ("image_classification", {"vocabulary": {"tokens": 90}}, "vocabulary is for classifiers of texts, .* null"),
        ("causal_lm", {"vocabulary": {"tokens": 90}}, "vocabulary is for classifiers of texts, .* null"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_its_field(
    tmp_path: Path, bert: TeacherConfig, task: str, values: dict[str, Any], message: str
) -> None:
    """The message names the field, what was found and the way out."""
    if task == "image_classification":
        bert = TeacherConfig(model=str(write_tiny_image_model(tmp_path / "images", CLASSES, 0)))
    elif task == "causal_lm":
        bert = TeacherConfig(model=str(write_tiny_causal_model(tmp_path / "tokens", 0)))
    with pytest.raises(ConfigError, match=message):
        _student(bert, None, task, **{"keep": 2, **values})


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("snapshot")
    texts = [f"{SENTENCES[row % 6]} {row % 20}" for row in range(120)]  # each comes once or several times
    pq.write_table(pa.table({"text": texts}), folder / "traffic.parquet")
    settings = {"source": str(folder / "traffic.parquet"), "shard_rows": 16, "columns": {"text": "text"}}
    config = SnapshotConfig.model_validate(settings)
    return open_snapshot(take_snapshot(config, input_column="text", seed=0, url=str(folder / "taken")))


def test_tokens_count_as_often_as_their_texts_came(bert: TeacherConfig, snapshot: Snapshot) -> None:
    """Over all shards as over each of them; special tokens do not count."""
    processor: Any = load_processor(bert, task=TEXT)
    inputs = get_task(TEXT).inputs
    train = [shard for shard in snapshot.shards if shard.split == "train"]
    found = count_tokens(snapshot, train, processor, inputs)
    rows = snapshot.read("train").to_pylist()
    assert len(train) > 2 and max(row["count"] for row in rows) > 1
    expected = np.zeros_like(found)
    for row in rows:
        for index in processor.tokenizer(row["text"], add_special_tokens=False)["input_ids"]:
            expected[index] += row["count"] * (index not in processor.tokenizer.all_special_ids)
    assert np.array_equal(found, expected)
    assert np.array_equal(found, sum(count_tokens(snapshot, [shard], processor, inputs) for shard in train))


def test_a_tokenizer_of_characters_has_nothing_to_leave_out(tmp_path: Path) -> None:
    """Single characters are always kept."""
    folder = write_tiny_text_model(tmp_path, CLASSES, seed=0, num_hidden_layers=3)
    student = _student(TeacherConfig(model=str(folder)), None, vocabulary={"keep": 0.1})
    assert student.describe["vocabulary"]["tokens"] == student.describe["vocabulary"]["teacher_tokens"]
