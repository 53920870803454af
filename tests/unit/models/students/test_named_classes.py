"""Building students and saving models: determinism, copied layers, and that what was saved loads again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DeiTConfig,
    DeiTForImageClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
)

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import Model, ModelParts
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.models.students.build import build_student
from ray_distill.models.students.layer_copy import evenly_spaced
from ray_distill.testing.models import (
    example,
    tiny_image_processor,
    tiny_text_model,
    tiny_tokenizer,
    write_tiny_image_model,
    write_tiny_text_model,
)

TEXT, IMAGE = "text_classification", "image_classification"
CLASSES = ("ham", "spam", "other")
MOVED = ("other", "ham", "spam")
FUNCTION = "ray_distill.testing.models:tiny_text_model"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherConfig:
    folder = write_tiny_text_model(tmp_path_factory.mktemp("models") / "teacher", CLASSES, seed=0, num_hidden_layers=4)
    return TeacherConfig(model=str(folder))


def _student(teacher: TeacherConfig, classes: tuple[str, ...] = CLASSES, seed: int = 1, **values: object) -> Model:
    return build_student(StudentModel.model_validate(values), task=TEXT, classes=classes, teacher=teacher, seed=seed)


def _logits(model: Model) -> torch.Tensor:
    with torch.inference_mode():
        return forward(model.module, example(model)).logits_BV[0]


SOURCES = {
    "config": {"from": "config", "overrides": {"num_hidden_layers": 1, "hidden_size": 16}},
    "teacher_layers": {"from": "teacher_layers", "keep": 2},
    "module": {"from": "module", "model": FUNCTION},
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_student_is_a_function_of_its_seed(teacher: TeacherConfig, source: str) -> None:
    """Equal seeds give equal weights, whatever was drawn before; other seeds give others, except copied weights."""
    first = _student(teacher, **SOURCES[source])
    torch.rand(3)
    assert _student(teacher, **SOURCES[source]).fingerprint == first.fingerprint
    other = _student(teacher, seed=2, **SOURCES[source])
    assert (other.fingerprint != first.fingerprint) == (source != "teacher_layers")


def test_building_leaves_the_random_state_alone(teacher: TeacherConfig) -> None:
    """The caller's generator is where it was."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    _student(teacher, **SOURCES["config"])
    assert torch.equal(torch.rand(1), expected)


def test_overrides_change_the_teachers_config(teacher: TeacherConfig) -> None:
    """A student from the config has the teacher's tokenizer, the overridden shape and float32 weights."""
    model = _student(teacher, **SOURCES["config"])
    assert model.widths == (16, 16) and model.classes == CLASSES
    assert model.processor.fingerprint == load_model(teacher, task=TEXT).processor.fingerprint
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    assert model.describe["overrides"] == SOURCES["config"]["overrides"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hiden_size": 16}, "did you mean hidden_size"),
        ({"num_labels": 7}, "decided by the snapshot"),
        ({"hidden_size": 33}, "multiple of the number of attention"),
        ({"num_hidden_layers": "two"}, "refuses"),
        ({"zzz": 1}, "it has"),
    ],
)
def test_wrong_overrides_are_config_errors(teacher: TeacherConfig, overrides: dict[str, object], message: str) -> None:
    """Each says which field, and near matches where there are some."""
    with pytest.raises(ConfigError, match=message):
        _student(teacher, overrides=overrides)


def test_layers_are_copied_evenly(teacher: TeacherConfig) -> None:
    """Kept layers, embeddings and head equal the teacher's, and the map stands in the description."""
    assert [evenly_spaced(keep, 12) for keep in (1, 2, 4, 6)] == [(0,), (0, 11), (0, 4, 7, 11), (0, 2, 4, 7, 9, 11)]
    student = _student(teacher, **SOURCES["teacher_layers"])
    own, theirs = student.module.state_dict(), load_model(teacher, task=TEXT).module.state_dict()
    assert student.describe["copied_layers"] == {"0": 0, "1": 3}
    for name, value in own.items():
        origin = name.replace("layer.1.", "layer.3.")
        assert torch.equal(value, theirs[origin]), name
    full = _student(teacher, **{"from": "teacher_layers", "keep": 4})
    assert torch.equal(_logits(full), _logits(load_model(teacher, task=TEXT)))


@pytest.mark.parametrize("source", ["teacher_layers", "checkpoint"])
def test_classes_in_another_order_are_remapped_by_name(teacher: TeacherConfig, source: str) -> None:
    """The head is permuted so that each name keeps its logit."""
    values = {"from": source, "keep": 4} if source == "teacher_layers" else {"from": source, "model": teacher.model}
    student = _student(teacher, classes=MOVED, **values)
    expected = _logits(load_model(teacher, task=TEXT))[[CLASSES.index(name) for name in MOVED]]
    assert torch.allclose(_logits(student), expected, atol=1e-6)


def test_other_classes_get_a_new_head(teacher: TeacherConfig) -> None:
    """A checkpoint of other classes keeps its body; its head is new and a function of the seed."""
    values = {"from": "checkpoint", "model": teacher.model}
    student = _student(teacher, classes=("a", "b"), **values)
    assert student.describe["head"] == "new" and _logits(student).shape == (2,)
    assert student.fingerprint == _student(teacher, classes=("a", "b"), **values).fingerprint
    theirs = load_model(teacher, task=TEXT).module.state_dict()
    assert torch.equal(
        student.module.state_dict()["bert.embeddings.word_embeddings.weight"],
        theirs["bert.embeddings.word_embeddings.weight"],
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"from": "teacher_layers", "keep": 5}, "has 4 layers"),
        ({"from": "teacher_layers", "keep": 1, "overrides": {"hidden_size": 16}}, "go with from: config"),
        ({"from": "module", "model": "some/folder"}, "not module:function"),
        ({"from": "module", "model": "os:system", "arguments": {"command": "exit 1"}}, "ModelParts"),
        ({"from": "module", "model": FUNCTION, "arguments": {"classes": ["a", "b"]}}, "has the classes"),
        ({"from": "checkpoint", "model": FUNCTION}, "set from: module"),
    ],
)
def test_impossible_students_are_config_errors(teacher: TeacherConfig, values: dict[str, object], message: str) -> None:
    """Each says what to change."""
    with pytest.raises(ConfigError, match=message):
        _student(teacher, **values)


def test_a_function_teacher_has_no_config_to_start_from() -> None:
    """The student must then come from a checkpoint or a function itself."""
    with pytest.raises(ConfigError, match="checkpoint or module"):
        _student(TeacherConfig(model=FUNCTION, arguments={"classes": list(CLASSES)}))


@pytest.mark.parametrize("source", SOURCES)
def test_a_saved_student_loads_again(teacher: TeacherConfig, tmp_path: Path, source: str) -> None:
    """Logits, classes, processor and limits survive; saving twice gives the same digest."""
    student = _student(teacher, classes=MOVED, max_length=None if source == "module" else 16, **SOURCES[source])
    digest = save_model(student, tmp_path / "a", card="# Card", metadata={"labels": "abc"})
    assert save_model(student, tmp_path / "b", card="# Other card", metadata={"labels": "def"}) == digest
    again = load_model(TeacherConfig(model=str(tmp_path / "a"), revision=digest), task=TEXT)
    assert again.classes == MOVED and again.processor.fingerprint == student.processor.fingerprint
    assert torch.allclose(_logits(again), _logits(student), atol=1e-6)
    assert (tmp_path / "a" / "README.md").read_text() == "# Card"
    assert json.loads((tmp_path / "a" / "ray_distill.json").read_text())["metadata"] == {"labels": "abc"}


def test_a_saved_text_student_is_a_plain_transformers_folder(teacher: TeacherConfig, tmp_path: Path) -> None:
    """transformers alone loads it, with class names and token limit."""
    student = _student(teacher, max_length=16, **SOURCES["config"])
    save_model(student, tmp_path, card="", metadata={})
    module = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert module.config.id2label == dict(enumerate(CLASSES)) and tokenizer.model_max_length == 16
    with torch.inference_mode():
        assert torch.allclose(module(**tokenizer("a", return_tensors="pt")).logits[0], _logits(student), atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("vit", {"num_hidden_layers": 1, "image_size": 14}),
        ("resnet", {"embedding_size": 4, "hidden_sizes": [4], "depths": [1]}),
    ],
)
def test_a_saved_image_student_is_a_plain_transformers_folder(
    tmp_path: Path, architecture: str, overrides: dict[str, object]
) -> None:
    """Also when its image size differs from the teacher's: its processor then resizes to its own."""
    folder = write_tiny_image_model(tmp_path / "t", CLASSES, 0, architecture=architecture)  # type: ignore[arg-type]
    student = build_student(
        StudentModel(overrides=overrides), task=IMAGE, classes=MOVED, seed=0, teacher=TeacherConfig(model=str(folder))
    )
    save_model(student, tmp_path / "s", card="", metadata={})
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "s").config.id2label == dict(enumerate(MOVED))
    AutoImageProcessor.from_pretrained(tmp_path / "s", backend="pil")
    again = load_model(str(tmp_path / "s"), task=IMAGE)
    assert again.processor.fingerprint == student.processor.fingerprint and again.widths == student.widths


def test_lists_of_one_entry_a_layer_follow_the_number_of_layers(tmp_path: Path) -> None:
    """Families that say for each layer what it is can be made shallower, from the config and by copying."""
    tokenizer = tiny_tokenizer()
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    ModernBertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    teacher = TeacherConfig(model=str(tmp_path))
    assert _student(teacher, overrides={"num_hidden_layers": 1}).layers == 1
    kept = _student(teacher, **{"from": "teacher_layers", "keep": 2})
    assert kept.module.config.layer_types == [config.layer_types[0], config.layer_types[3]]


def test_a_family_of_several_classifiers_keeps_the_teachers(tmp_path: Path) -> None:
    """The architecture named in the teacher's config decides."""
    config = DeiTConfig(
        image_size=28,
        patch_size=7,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    DeiTForImageClassification(config).save_pretrained(tmp_path)
    tiny_image_processor().save(tmp_path)
    student = build_student(
        StudentModel(), task=IMAGE, classes=CLASSES, seed=0, teacher=TeacherConfig(model=str(tmp_path))
    )
    assert isinstance(student.module, DeiTForImageClassification)


def test_layers_of_an_image_transformer_are_copied(tmp_path: Path) -> None:
    """The stack is found by its length, not by the name of an architecture; feature-map models have none."""
    vit = write_tiny_image_model(tmp_path / "vit", CLASSES, 0, num_hidden_layers=3)
    student = build_student(
        StudentModel.model_validate({"from": "teacher_layers", "keep": 2}),
        task=IMAGE,
        seed=0,
        classes=CLASSES,
        teacher=TeacherConfig(model=str(vit)),
    )
    assert student.describe["copied_layers"] == {"0": 0, "1": 2} and student.layers == 2
    resnet = write_tiny_image_model(tmp_path / "resnet", CLASSES, 0, architecture="resnet")
    with pytest.raises(ConfigError, match="not a stack of equal layers"):
        build_student(
            StudentModel.model_validate({"from": "teacher_layers", "keep": 1}),
            task=IMAGE,
            seed=0,
            classes=CLASSES,
            teacher=TeacherConfig(model=str(resnet)),
        )


def test_sharded_weights_can_be_saved(teacher: TeacherConfig, tmp_path: Path) -> None:
    """A full state dict given beside the model is what is saved."""
    student = _student(teacher, **SOURCES["config"])
    state = {name: value + 1 for name, value in student.module.state_dict().items()}
    save_model(student, tmp_path, card="", metadata={}, state_dict=state)
    again = load_model(str(tmp_path), task=TEXT).module.state_dict()
    assert all(torch.equal(again[name], value) for name, value in state.items())


@pytest.mark.parametrize("source", ["config", "module"])
def test_what_was_fitted_to_decide_is_saved_with_the_model(teacher: TeacherConfig, tmp_path: Path, source: str) -> None:
    """It is read back, and it decides answers, so that another one is another model."""
    student = _student(teacher, **SOURCES[source])
    decision = {"thresholds": {"ham": 0.1, "spam": 0.30000000000000004, "other": 0.5}}
    bare = save_model(student, tmp_path / "bare", card="", metadata={})
    digest = save_model(replace(student, decision=decision), tmp_path / "decided", card="", metadata={})
    plain, decided = (load_model(str(tmp_path / name), task=TEXT) for name in ("bare", "decided"))
    assert plain.decision == {} and decided.decision == decision
    assert bare != digest and plain.fingerprint != decided.fingerprint


def unannotated(classes: list[str]):  # type: ignore[no-untyped-def]  # noqa: ANN201
    return tiny_text_model(classes)


def test_a_saved_function_is_called_only_if_it_builds_models(teacher: TeacherConfig, tmp_path: Path) -> None:
    """A forged file beside a model cannot name any function of the machine; the same before training."""
    save_model(_student(teacher, **SOURCES["module"]), tmp_path, card="", metadata={})
    path = tmp_path / "ray_distill.json"
    saved = json.loads(path.read_text())
    del saved["content_digest"]
    saved["factory"] = {"name": "os:mkdir", "arguments": {"path": str(tmp_path / "owned")}}
    path.write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match="ModelParts"):
        load_model(str(tmp_path), task=TEXT)
    assert not (tmp_path / "owned").exists()
    with pytest.raises(ConfigError, match="ModelParts"):
        _student(teacher, **{"from": "module", "model": f"{__name__}:unannotated"})


def own_model(classes: list[str]) -> ModelParts:
    return tiny_text_model(classes)


def test_weights_that_do_not_fit_the_function_are_refused(teacher: TeacherConfig, tmp_path: Path) -> None:
    """Another number of classes in the saved arguments cannot load the saved weights."""
    student = _student(teacher, **{"from": "module", "model": f"{__name__}:own_model"})
    save_model(student, tmp_path, card="", metadata={})
    path = tmp_path / "ray_distill.json"
    saved = json.loads(path.read_text())
    del saved["content_digest"]
    saved["factory"]["arguments"] = {"classes": ["a"]}
    path.write_text(json.dumps(saved))
    with pytest.raises(ModelError, match="do not fit"):
        load_model(str(tmp_path), task=TEXT)
