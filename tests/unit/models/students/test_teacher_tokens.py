"""Students of language models: where their weights come from, and that they read the teacher's tokens."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.models.core.head_extraction import body_and_head
from ray_distill.models.core.model import Model, ModelParts
from ray_distill.models.io.load import load_model, load_processor
from ray_distill.models.students.build import build_student
from ray_distill.models.text.lm_processor import LanguageProcessor
from ray_distill.models.text.processors import text_processor
from ray_distill.testing.models import tiny_causal_tokenizer, write_tiny_causal_model

TASK, V = "causal_lm", 264


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherConfig:
    folder = tmp_path_factory.mktemp("models") / "teacher"
    write_tiny_causal_model(folder, seed=0, num_hidden_layers=4)
    generation = {"eos_token_id": [2, 4], "pad_token_id": 0, "do_sample": True, "temperature": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return TeacherConfig(model=str(folder))


@pytest.fixture(scope="module")
def taught(teacher: TeacherConfig) -> Any:
    return load_model(teacher, task=TASK).module


def _student(teacher: TeacherConfig, seed: int = 1, **values: Any) -> Model:
    return build_student(StudentModel.model_validate(values), task=TASK, classes=(), teacher=teacher, seed=seed)


def spoken(vocabulary: int = 7) -> ModelParts:
    config = transformers.GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=1, n_head=2, n_positions=128)
    return ModelParts(
        module=transformers.GPT2LMHeadModel(config), classes=(), processor=text_processor(tiny_causal_tokenizer(), 128)
    )


SOURCES: dict[str, dict[str, Any]] = {
    "new": {"from": "config", "overrides": {"num_hidden_layers": 1, "hidden_size": 16, "head_dim": 4}},
    "slice": {
        "from": "config",
        "embeddings": "slice",
        "overrides": {"num_hidden_layers": 1, "hidden_size": 16, "head_dim": 4},
    },
    "copy": {"from": "config", "embeddings": "copy", "overrides": {"num_hidden_layers": 1}},
    "teacher_layers": {"from": "teacher_layers", "keep": 2},
    "module": {"from": "module", "model": f"{__name__}:spoken"},
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_student_has_the_teachers_vocabulary_and_processor(teacher: TeacherConfig, source: str) -> None:
    """No class names, V outputs, the teacher's tokens and settings; a function of its seed; apt for fused losses."""
    settings = LanguageConfig(format="chat", roles=("user",))
    chatty = teacher.model_copy(update={"language": settings, "max_length": 50})
    model = _student(chatty, **SOURCES[source])
    assert (model.classes, model.vocabulary, model.class_count) == ((), V, V)
    assert isinstance(model.processor, LanguageProcessor)
    assert model.processor.settings == settings and model.processor.max_length == 50
    assert model.processor.fingerprint == load_processor(chatty, task=TASK).fingerprint
    torch.rand(3)
    assert _student(chatty, **SOURCES[source]).fingerprint == model.fingerprint
    assert (_student(chatty, seed=2, **SOURCES[source]).fingerprint == model.fingerprint) == (
        source == "teacher_layers"
    )
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    assert body_and_head(model.module)[1].out_features == V


def test_copied_embeddings_are_the_teachers(teacher: TeacherConfig, taught: Any) -> None:
    """Embeddings and head are equal to the teacher's, layers are not."""
    module: Any = _student(teacher, **SOURCES["copy"]).module
    assert torch.equal(module.model.embed_tokens.weight, taught.model.embed_tokens.weight)
    assert torch.equal(module.lm_head.weight, taught.lm_head.weight)
    assert not torch.equal(module.model.layers[0].mlp.up_proj.weight, taught.model.layers[0].mlp.up_proj.weight)


def test_sliced_embeddings_are_the_first_columns_at_the_teachers_length(teacher: TeacherConfig, taught: Any) -> None:
    """A student half as wide has the first half of the columns times the root of two, so token vectors keep their
    length: within a tenth on the average over the vocabulary."""
    module: Any = _student(teacher, **SOURCES["slice"]).module
    for ours, theirs in ((module.model.embed_tokens, taught.model.embed_tokens), (module.lm_head, taught.lm_head)):
        torch.testing.assert_close(ours.weight, theirs.weight[:, :16] * 2**0.5)
        # (the padding token's embedding is zero)
        assert ours.weight.norm(dim=1).mean().item() == pytest.approx(theirs.weight.norm(dim=1).mean().item(), rel=0.1)


@pytest.mark.parametrize("tied", [(True, False), (False, True), (True, True)])
def test_embeddings_and_head_may_be_tied_on_either_side(tmp_path: Path, tied: tuple[bool, bool]) -> None:
    """A tied teacher fills both of an untied student; a tied student takes the teacher's embeddings."""
    folder = write_tiny_causal_model(tmp_path / "teacher", seed=0, tie_word_embeddings=tied[0])
    student: Any = _student(
        TeacherConfig(model=str(folder)),
        **{"from": "config"},
        embeddings="copy",
        overrides={"tie_word_embeddings": tied[1], "num_hidden_layers": 1},
    ).module
    source: Any = load_model(str(folder), task=TASK).module
    assert torch.equal(student.model.embed_tokens.weight, source.model.embed_tokens.weight)
    assert (student.lm_head.weight is student.model.embed_tokens.weight) == tied[1]
    assert torch.equal(student.lm_head.weight, (source.model.embed_tokens if tied[1] else source.lm_head).weight)


def test_copied_layers_are_evenly_spaced_and_named(teacher: TeacherConfig, taught: Any) -> None:
    """Two of four layers: the first and the last, whose map is told; embeddings, norm and head are the teacher's."""
    model = _student(teacher, **SOURCES["teacher_layers"])
    module: Any = model.module
    assert model.describe["copied_layers"] == {"0": 0, "1": 3} and model.describe["teacher_layers"] == 4
    state = taught.state_dict()
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name.replace("layers.1.", "layers.3.")])
    assert module.config.num_hidden_layers == 2 and module.config.eos_token_id == 2


@pytest.mark.parametrize("source", ["new", "teacher_layers"])
def test_a_student_ends_its_answers_as_the_teacher_does(teacher: TeacherConfig, source: str) -> None:
    """The generation config, where alone some families say which tokens end a message, comes along."""
    module: Any = _student(teacher, **SOURCES[source]).module
    assert module.generation_config.eos_token_id == [2, 4] and module.generation_config.temperature == 0.6


def test_a_checkpoint_of_the_teachers_tokens_is_a_student(teacher: TeacherConfig, tmp_path: Path) -> None:
    """It keeps its weights, takes the teacher's settings, and may have been written by anyone."""
    folder = write_tiny_causal_model(tmp_path / "student", seed=3, hidden_size=16, head_dim=4)
    model = _student(teacher.model_copy(update={"max_length": 40}), **{"from": "checkpoint"}, model=str(folder))
    alone: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(261, (2, 9))
    with torch.no_grad():
        assert torch.equal(model.module(input_ids=ids).logits, alone(input_ids=ids).logits)
    assert isinstance(model.processor, LanguageProcessor) and model.processor.max_length == 40


def _other_tokens(folder: Path) -> None:
    tokenizer = tiny_causal_tokenizer()
    tokenizer.add_tokens(["distil"])
    tokenizer.save_pretrained(folder)


def _other_end(folder: Path) -> None:
    tokenizer = tiny_causal_tokenizer()
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(folder)


def _other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")


def _no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_other_tokens, "262 tokens against 261, of which 1"),
        (_other_end, r"eos_token <\|im_end\|> against <\|end\|>"),
        (_other_template, "another chat template"),
        (_no_template, "another chat template"),
    ],
)
def test_a_student_of_other_tokens_is_refused(teacher: TeacherConfig, tmp_path: Path, change: Any, what: str) -> None:
    """The error names both models, what differs, and the ways out; a template counts where it is used alone."""
    folder = write_tiny_causal_model(tmp_path / "student", seed=3)
    change(folder)
    chatty = teacher.model_copy(update={"language": LanguageConfig(format="chat")})
    with pytest.raises(ConfigError, match=what) as error:
        _student(chatty, **{"from": "checkpoint"}, model=str(folder))
    for words in (str(folder), teacher.model, "teacher's config or layers", "tokenizer files"):
        assert words in str(error.value)
    if change in (_other_template, _no_template):
        assert _student(teacher, **{"from": "checkpoint"}, model=str(folder)).vocabulary == V


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"from": "config", "overrides": {"vocab_size": 260}}, "vocabulary of 260, fewer than the 261 tokens"),
        (
            {"from": "config", "embeddings": "copy", "overrides": {"vocab_size": 272}},
            "embeddings is copy, but .* vocabulary of 272, the teacher .* one of 264",
        ),
        (
            {"from": "config", "embeddings": "copy", "overrides": {"hidden_size": 16, "head_dim": 4}},
            "copy needs the teacher's width 32, and the student has 16",
        ),
        ({"from": "config", "embeddings": "slice", "overrides": {"hidden_size": 64}}, "of the teacher's 32, .* has 64"),
        ({"from": "config", "overrides": {"max_position_embeddings": 64}}, "64 positions, but the teacher reads 128"),
        ({"from": "config", "max_length": 64}, "max_length is 64, but the teacher reads 128 tokens"),
        ({"from": "teacher_layers", "keep": 9}, "keep is 9, but the teacher has 4 layers"),
        ({"from": "teacher_layers", "keep": 2, "overrides": {"hidden_size": 16}}, "go with from: config"),
        ({"from": "checkpoint", "model": f"{__name__}:spoken"}, "is a function: set from: module"),
        ({"from": "module", "model": "a/folder"}, "for a folder use from: checkpoint"),
        (
            {"from": "module", "model": f"{__name__}:spoken", "arguments": {"vocabulary": 200}},
            "vocabulary of 200, fewer than the 261 tokens",
        ),
    ],
)
def test_students_that_do_not_fit_the_teacher_are_refused(
    teacher: TeacherConfig, values: dict[str, Any], message: str
) -> None:
    """Another V, width, depth or length than the teacher allows is a config error that gives both numbers."""
    with pytest.raises(ConfigError, match=message):
        _student(teacher, **values)


@pytest.mark.parametrize("size", [261, 262, 272])
def test_a_vocabulary_may_be_padded_otherwise_than_the_teachers(teacher: TeacherConfig, size: int) -> None:
    """Classes beyond the tokenizer have no token: Qwen2.5 has 152,064 in large models and 151,936 in small ones."""
    assert _student(teacher, **{"from": "config"}, overrides={"vocab_size": size}).vocabulary == size


def test_embeddings_belong_to_students_from_the_config() -> None:
    """Elsewhere they are copied with the rest, or the checkpoint's own; classifiers have none to copy."""
    with pytest.raises(ValueError, match="goes with from: config"):
        StudentModel.model_validate({"from": "teacher_layers", "keep": 2, "embeddings": "copy"})
    with pytest.raises(ConfigError, match="for language models"):
        build_student(
            StudentModel(embeddings="copy"),
            task="text_classification",
            classes=("a", "b"),
            teacher=TeacherConfig(model="nowhere"),
            seed=0,
        )


def test_a_function_teacher_has_students_of_checkpoints_and_functions(tmp_path: Path) -> None:
    """Its vocabulary is compared where the caller knows it; there is no config to start from."""
    folder = write_tiny_causal_model(tmp_path / "student", seed=3)
    function = TeacherConfig(model=f"{__name__}:spoken", arguments={"vocabulary": V})
    known = {"task": TASK, "classes": (), "teacher": function, "seed": 0}
    student = StudentModel.model_validate({"from": "checkpoint", "model": str(folder)})
    assert build_student(student, vocabulary=V, **known).vocabulary == V
    assert build_student(student, vocabulary=300, **known).vocabulary == V  # padded otherwise
    with pytest.raises(ConfigError, match="no config and no layers"):
        build_student(StudentModel(), vocabulary=V, **known)


def test_a_checkpoint_without_its_head_is_no_student(teacher: TeacherConfig, tmp_path: Path) -> None:
    """An encoder's checkpoint lacks the head, which is not made up for a language model."""
    folder = Path(shutil.copytree(teacher.model, tmp_path / "body"))
    body: Any = transformers.AutoModel.from_pretrained(folder)
    body.save_pretrained(folder)
    with pytest.raises(ModelError, match="no weights for lm_head.weight"):
        _student(teacher, **{"from": "checkpoint"}, model=str(folder))
    assert isinstance(body, nn.Module)
