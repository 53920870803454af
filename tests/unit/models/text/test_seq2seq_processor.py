"""Encoder-decoders: heads taken apart, students made of them, and what a saved one remembers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.models.core.forward import last_states, spared
from ray_distill.models.core.head_extraction import body_and_head, keeps_documents_apart
from ray_distill.models.core.model import Model, ModelParts
from ray_distill.models.io.load import load_model, load_processor
from ray_distill.models.io.save import save_model
from ray_distill.models.students.build import build_student
from ray_distill.models.text.seq2seq_processor import PairProcessor, pair_processor
from ray_distill.testing.models import tiny_pair_tokenizer, write_tiny_seq2seq_model

V = 264
KINDS: dict[str, dict[str, Any]] = {
    "t5": {},
    "t5 untied": {"tie_word_embeddings": False, "scale_decoder_outputs": False},
    "bart": {"architecture": "bart"},
}


def _write(folder: Path, kind: str = "t5", **overrides: Any) -> Path:
    return write_tiny_seq2seq_model(folder, seed=0, **(KINDS[kind] | overrides))


def _load(folder: Path) -> Model:
    return load_model(str(folder), task="seq2seq")


def _build(folder: Path, **settings: Any) -> Model:
    language = settings.pop("language", {})
    teacher = TeacherConfig(model=str(folder), language=LanguageConfig(**language))
    return build_student(StudentModel.model_validate(settings), task="seq2seq", classes=(), teacher=teacher, seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_head_sees_what_the_decoder_gives(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    """Scaled or not, tied or not, the head of what it would have seen is the module's logits, to the bit."""
    module = _load(_write(tmp_path, kind)).module.to(dtype)
    body, head = body_and_head(module)
    read, written = torch.randint(3, V, (3, 9)), torch.randint(3, V, (3, 5))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [6]])).long()
    batch = {"input_ids": read, "attention_mask": mask, "decoder_input_ids": written, "use_cache": False}
    with torch.no_grad():
        with spared(body, head) as caught:
            found = body(**batch)
        assert found.logits.shape == (3, 0, V) and len(caught) == 1
        assert torch.equal(head(last_states(found, caught)), module(**batch).logits)


def test_a_spared_head_is_whole_again_afterwards(tmp_path: Path) -> None:
    """Even where the body fails while it is spared."""
    body, head = body_and_head(_load(_write(tmp_path)).module)
    with pytest.raises(ValueError, match="must specify"), spared(body, head):
        body(input_ids=torch.ones(1, 2, dtype=torch.int64))
    assert head(torch.zeros(1, 4, 32)).shape == (1, 4, V)


def test_a_bias_beside_the_head_is_refused_by_name(tmp_path: Path) -> None:
    """Marian's: a student like it is trained with whole logits, and answers as a teacher with them."""
    model = _load(_write(tmp_path, "bart"))
    model.module.final_logits_bias.fill_(0.5)
    with pytest.raises(ModelError, match=r"adds a bias to its logits \(final_logits_bias\)"):
        body_and_head(model.module)
    assert model.apart is None


def test_a_student_keeps_the_first_and_last_layers_of_both_halves(tmp_path: Path) -> None:
    """As many as are wanted of each; what is kept has the teacher's weights."""
    folder = _write(tmp_path, num_layers=3, num_decoder_layers=4)
    teacher, student = _load(folder).module, _build(folder, **{"from": "teacher_layers", "keep": 2, "keep_encoder": 3})
    assert student.describe["copied_layers"] == {"encoder": {"0": 0, "1": 1, "2": 2}, "decoder": {"0": 0, "1": 3}}
    assert student.describe["teacher_layers"] == {"encoder": 3, "decoder": 4}
    ours, theirs = student.module.state_dict(), teacher.state_dict()
    own = "decoder.block.1.layer.2.DenseReluDense.wo.weight"
    assert torch.equal(ours[own], theirs[own.replace("block.1", "block.3")])
    assert torch.equal(
        ours["encoder.block.2.layer.0.SelfAttention.q.weight"], theirs["encoder.block.2.layer.0.SelfAttention.q.weight"]
    )


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_student_of_all_layers_is_its_teacher(tmp_path: Path, kind: str) -> None:
    """No weight is forgotten, in either family."""
    folder = _write(tmp_path, kind)
    student = _build(folder, **{"from": "teacher_layers", "keep": 2})
    theirs = _load(folder).module.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in student.module.state_dict().items())


def test_what_layers_cannot_be_is_said(tmp_path: Path) -> None:
    """More than there are; and an encoder's of a model that has none."""
    folder = _write(tmp_path)
    with pytest.raises(ConfigError, match="keep is 3, but the teacher has 2"):
        _build(folder, **{"from": "teacher_layers", "keep": 3})


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [("t5", {"d_model": 16, "num_decoder_layers": 1}), ("bart", {"decoder_layers": 1, "decoder_ffn_dim": 16})],
)
def test_a_fresh_student_reads_and_writes_the_teachers_tokens(
    tmp_path: Path, kind: str, overrides: dict[str, Any]
) -> None:
    """From the config with changes: the same processor, the same vocabulary, its own size."""
    folder = _write(tmp_path, kind)
    student, teacher = _build(folder, **{"from": "config", "overrides": overrides}), _load(folder)
    assert student.processor.fingerprint == teacher.processor.fingerprint and student.vocabulary == V
    assert student.describe["parameters"] < teacher.describe["parameters"]


def test_a_student_of_another_start_is_refused(tmp_path: Path) -> None:
    """Its decoder would be asked something else than the labels answer."""
    folder, other = _write(tmp_path / "a"), _write(tmp_path / "b", decoder_start_token_id=1)
    assert _build(folder, **{"from": "checkpoint", "model": str(folder)}).vocabulary == V
    with pytest.raises(ConfigError, match="another tokenizer"):
        _build(folder, **{"from": "checkpoint", "model": str(other)})


def test_a_student_too_short_for_the_targets_is_refused(tmp_path: Path) -> None:
    """Positions count for what is written, too."""
    folder = _write(tmp_path, "bart")
    with pytest.raises(ConfigError, match="has 64 positions, but the teacher reads 65 tokens"):
        _build(folder, **{"from": "teacher_layers", "keep": 1, "language": {"target_length": 65}})


def test_a_saved_student_reads_as_it_was_taught_to(tmp_path: Path) -> None:
    """Prefix and limits stand in no file of transformers'; loaded plainly it is an ordinary encoder-decoder."""
    folder = _write(tmp_path / "teacher")
    student = _build(folder, **{"from": "teacher_layers", "keep": 1, "language": {"prefix": "p: ", "target_length": 9}})
    save_model(student, tmp_path / "student", card="", metadata={})
    again = _load(tmp_path / "student")
    assert again.processor.fingerprint == student.processor.fingerprint
    assert load_processor(str(tmp_path / "student"), task="seq2seq").fingerprint == student.processor.fingerprint
    plain = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student")
    assert plain.config.num_decoder_layers == 1 and torch.equal(plain.shared.weight, student.module.shared.weight)


def test_a_decoder_that_does_not_say_how_it_starts_is_refused(tmp_path: Path) -> None:
    """And so is a model that is no encoder-decoder."""
    with pytest.raises(ModelError, match="decoder_start_token_id"):
        _load(_write(tmp_path, decoder_start_token_id=None))


def test_a_function_may_make_an_encoder_decoder() -> None:
    """Its processor is made anew with the teacher's settings."""
    model = load_model(TeacherConfig(model=f"{__name__}:made", language=LanguageConfig(prefix="p: ")), task="seq2seq")
    assert isinstance(model.processor, PairProcessor) and model.processor.settings.prefix == "p: "
    assert model.vocabulary == V and model.widths == (16, 16) and not keeps_documents_apart(model.module)


def made() -> ModelParts:
    """A T5 of one layer."""
    config = transformers.T5Config(
        vocab_size=V, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return ModelParts(
        module=transformers.T5ForConditionalGeneration(config),
        classes=(),
        processor=pair_processor(tiny_pair_tokenizer(), 32, LanguageConfig(), start=0),
    )
