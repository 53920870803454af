"""Students trained through adapters: only those learn, and what is saved is a plain model again."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.models.core.head_extraction import body_and_head
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.models.students.build import build_student
from ray_distill.testing.models import write_tiny_causal_model

TASK = "causal_lm"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherConfig:
    folder = tmp_path_factory.mktemp("models") / "teacher"
    return TeacherConfig(model=str(write_tiny_causal_model(folder, seed=0, num_hidden_layers=4)))


def _student(teacher: TeacherConfig, seed: int = 1, **lora: Any) -> Model:
    values = {"from": "teacher_layers", "keep": 2, "lora": {"rank": 4, **lora}}
    return build_student(StudentModel.model_validate(values), task=TASK, classes=(), teacher=teacher, seed=seed)


def _trained(model: Model) -> Any:
    """The student after a step in which its adapters alone may move."""
    ids = torch.randint(264, (2, 9), generator=torch.Generator().manual_seed(0))
    trainable = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=10.0)
    for _ in range(2):
        optimizer.zero_grad()
        model.module(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model.module


def test_adapters_begin_as_nothing_and_alone_are_trained(teacher: TeacherConfig) -> None:
    """The student answers as without them at first; after two steps nothing but adapters has moved."""
    model = _student(teacher)
    plain = build_student(
        StudentModel.model_validate({"from": "teacher_layers", "keep": 2}),
        task=TASK,
        classes=(),
        teacher=teacher,
        seed=1,
    )
    ids = torch.randint(264, (1, 7))
    with torch.no_grad():
        assert torch.equal(model.module(input_ids=ids).logits, plain.module(input_ids=ids).logits)
    names = {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    assert names and all("lora_" in name for name in names)
    assert model.describe["lora"]["parameters"] == sum(
        parameter.numel() for parameter in model.module.parameters() if parameter.requires_grad
    )
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    after = _trained(model).state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved and all("lora_" in name for name in moved)


def test_a_student_with_adapters_is_a_function_of_its_seed(teacher: TeacherConfig) -> None:
    """Equal seeds draw equal adapters, others do not; its head can be taken apart as before."""
    first = _student(teacher)
    torch.rand(3)
    assert _student(teacher).fingerprint == first.fingerprint != _student(teacher, seed=2).fingerprint
    assert body_and_head(first.module)[1].out_features == 264


@pytest.mark.parametrize("gathered", [False, True])
def test_a_saved_student_has_its_adapters_merged(teacher: TeacherConfig, tmp_path: Path, gathered: bool) -> None:
    """Plain transformers gives the trained student's logits, up to rounding, from weights without adapters."""
    torch.manual_seed(0)  # how much rounding shows depends on the texts
    model = _student(teacher)
    module = _trained(model)
    ids = torch.randint(264, (2, 9))
    with torch.no_grad():
        expected = module.eval()(input_ids=ids).logits
    state = None
    if gathered:  # the module itself has other weights then: what counts is what was gathered
        state = {name: value.clone() for name, value in module.state_dict().items()}
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
    save_model(model, tmp_path / "saved", card="", metadata={}, state_dict=state)
    assert not any("lora" in name or "base_layer" in name for name in load_file(tmp_path / "saved/model.safetensors"))
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert load_model(str(tmp_path / "saved"), task=TASK).describe["parameters"] == sum(
        parameter.numel() for parameter in plain.parameters()
    )
    assert any("lora_" in name for name, _ in module.named_parameters())


def test_targets_that_are_not_there_are_refused(teacher: TeacherConfig) -> None:
    """The error lists the layers there are; those that are there are the only ones adapted."""
    with pytest.raises(ConfigError, match=r"\['query'\] fit no layer of LlamaForCausalLM.*q_proj"):
        _student(teacher, targets=["query"])
    names = [
        name
        for name, parameter in _student(teacher, targets=["q_proj"]).module.named_parameters()
        if parameter.requires_grad
    ]
    assert len(names) == 4 and all("q_proj" in name for name in names)


def test_adapters_need_weights_and_peft(teacher: TeacherConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not beside drawn weights, not for classifiers, and without peft the error says how to get it."""
    with pytest.raises(ValueError, match="from: config draws them"):
        StudentModel.model_validate({"from": "config", "lora": {}})
    with pytest.raises(ConfigError, match="for language models"):
        build_student(
            StudentModel.model_validate({"from": "teacher_layers", "keep": 2, "lora": {}}),
            task="text_classification",
            classes=("a", "b"),
            teacher=teacher,
            seed=0,
        )
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match="pip install peft"):
        _student(teacher)
