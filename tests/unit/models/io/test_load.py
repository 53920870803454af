"""Loading models: what is accepted, what is refused and how, and what their fingerprints depend on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from ray_distill.config import HeadConfig, TeacherConfig
from ray_distill.errors import ConfigError, DistillError, ModelError
from ray_distill.models.core.checkpoint_files import checkpoint_digest
from ray_distill.models.core.forward import forward
from ray_distill.models.io.load import load_model, load_processor
from ray_distill.testing.models import (
    example,
    tiny_text_model,
    tiny_tokenizer,
    write_tiny_image_model,
    write_tiny_text_model,
)

TEXT, IMAGE = "text_classification", "image_classification"
CLASSES = ("ham", "spam", "other")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_text_model(tmp_path_factory.mktemp("models") / "text", CLASSES, seed=0)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def test_a_checkpoint_gives_module_processor_classes_and_layers(checkpoint: Path) -> None:
    """Class names come in id order, layers count from the embeddings, the module is ready for inference."""
    model = load_model(str(checkpoint), task=TEXT)
    assert model.classes == CLASSES and model.layers == 2 and model.widths == (32, 32, 32)
    assert not model.module.training
    assert model.describe["parameters"] == sum(p.numel() for p in model.module.parameters())


def test_a_fingerprint_is_of_content_not_of_place(checkpoint: Path, copy: Path) -> None:
    """The same files elsewhere have the same fingerprint; so has a processor loaded alone."""
    here, there = load_model(str(checkpoint), task=TEXT), load_model(f"file://{copy}", task=TEXT)
    assert here.fingerprint == there.fingerprint
    assert load_processor(str(copy), task=TEXT).fingerprint == here.processor.fingerprint


def test_a_fingerprint_sees_every_change_that_matters(checkpoint: Path, copy: Path) -> None:
    """Weights, dtype and token limit change it; the model card does not."""
    known = load_model(str(checkpoint), task=TEXT).fingerprint
    (copy / "README.md").write_text("another card")
    assert load_model(str(copy), task=TEXT).fingerprint == known
    found = {known}
    found.add(load_model(TeacherConfig(model=str(copy), dtype="bfloat16"), task=TEXT).fingerprint)
    found.add(load_model(TeacherConfig(model=str(copy), max_length=8), task=TEXT).fingerprint)
    weights = load_file(copy / "model.safetensors")
    weights["classifier.bias"] = weights["classifier.bias"] + 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    found.add(load_model(str(copy), task=TEXT).fingerprint)
    assert len(found) == 4


def test_a_remote_checkpoint_is_the_same_model(checkpoint: Path) -> None:
    """A checkpoint on any fsspec URL equals the local one; its processor alone loads without the weights."""
    from ray_distill.storage.files import upload_folder

    upload_folder(checkpoint, "memory://models/text")
    here, there = load_model(str(checkpoint), task=TEXT), load_model("memory://models/text", task=TEXT)
    assert there.fingerprint == here.fingerprint
    assert load_processor("memory://models/text", task=TEXT).fingerprint == here.processor.fingerprint


def test_the_pinned_revision_is_verified(copy: Path) -> None:
    """The right digest loads; another is an error that names both; no digest at all is a wrong config."""
    digest = checkpoint_digest(copy)
    load_model(TeacherConfig(model=str(copy), revision=digest), task=TEXT)
    other = "sha256:" + "0" * 64
    with pytest.raises(ModelError, match="have changed") as error:
        load_model(TeacherConfig(model=str(copy), revision=other), task=TEXT)
    assert other in str(error.value) and digest in str(error.value)
    with pytest.raises(ConfigError, match="64 hexadecimal"):
        load_model(TeacherConfig(model=str(copy), revision="main"), task=TEXT)


def test_dtype_is_that_of_the_weights(checkpoint: Path) -> None:
    """A bfloat16 teacher holds and answers in bfloat16."""
    model = load_model(TeacherConfig(model=str(checkpoint), dtype="bfloat16"), task=TEXT)
    assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}
    assert forward(model.module, example(model)).logits_BV.dtype == torch.bfloat16


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _headless(folder: Path) -> None:
    BertModel(BertConfig(**{**_small(), "vocab_size": len(tiny_tokenizer())})).save_pretrained(folder)


def _small() -> dict[str, int]:
    return {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def _remote_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "nobody-knows", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('remote code ran')")


def _truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _no_pad(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "pad_token"}
    path.write_text(json.dumps(config))


BROKEN = {
    "pickled": (_pickled, "convert it"),
    "headless": (_headless, "set `head`"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot read the config"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "not a checkpoint"),
    "truncated weights": (_truncated, "cannot load"),
    "remote code": (_remote_code, "trust_remote_code"),
    "no tokenizer": (
        lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "tokenizer",
    ),
    "no padding token": (_no_pad, "padding token"),
    "damaged metadata": (lambda folder: (folder / "ray_distill.json").write_text("["), "damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_safe_whole_checkpoint_is_refused(copy: Path, name: str) -> None:
    """Each broken checkpoint gives one ModelError that says what is wrong."""
    damage, message = BROKEN[name]
    damage(copy)
    with pytest.raises(ModelError, match=message):
        load_model(str(copy), task=TEXT)


def test_wrong_task_folder_and_limits_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    """An image task with a text model, a missing folder, a length beyond the positions: clear errors."""
    with pytest.raises(DistillError, match="image processor"):
        load_model(str(checkpoint), task=IMAGE)
    with pytest.raises(ConfigError, match="no task"):
        load_model(str(checkpoint), task="poetry")
    with pytest.raises(ModelError, match="nothing is fetched"):
        load_model(str(tmp_path / "bert-base-uncased"), task=TEXT)
    with pytest.raises(ModelError, match="64 positions"):
        load_model(TeacherConfig(model=str(checkpoint), max_length=65), task=TEXT)
    with pytest.raises(ModelError, match="fitted first"):
        load_model(TeacherConfig(model=str(checkpoint), head=HeadConfig()), task=TEXT)
    with pytest.raises(ConfigError, match="device"):
        load_model(TeacherConfig(model=str(checkpoint), device="abacus"), task=TEXT)


@pytest.mark.parametrize("architecture", ["vit", "resnet"])
def test_image_models_take_grey_and_colour(tmp_path: Path, architecture: str) -> None:
    """Token and feature-map models load; ``spatial`` tells them apart; hidden states come as tokens."""
    folder = write_tiny_image_model(tmp_path / "image", CLASSES, 0, channels=3, architecture=architecture)  # type: ignore[arg-type]
    model = load_model(str(folder), task=IMAGE)
    output = forward(model.module, example(model), [0, model.layers])
    assert model.states.spatial == (architecture == "resnet")
    assert [state.shape[-1] for state in output.hidden.values()] == [model.widths[0], model.widths[-1]]
    assert all(state.ndim == 3 for state in output.hidden.values()) and output.mask_BL is None


def test_a_function_is_a_model(tmp_path: Path) -> None:
    """``module:function`` is called with its arguments; equal calls give equal fingerprints."""
    spec = TeacherConfig(model="ray_distill.testing.models:tiny_text_model", arguments={"classes": ["a", "b"]})
    model, again = load_model(spec, task=TEXT), load_model(spec, task=TEXT)
    assert model.classes == ("a", "b") and model.widths == (16, 16)
    assert model.fingerprint == again.fingerprint
    other = spec.model_copy(update={"arguments": {"classes": ["b", "a"]}})
    assert load_model(other, task=TEXT).fingerprint != model.fingerprint


def test_a_throwing_function_model_still_loads(tmp_path: Path) -> None:
    """Loading does not run a function's model, and throwing does not change its fingerprint."""
    fuse = tmp_path / "fuse"
    spec = TeacherConfig(
        model="ray_distill.testing.models:tiny_text_model", arguments={"classes": ["a", "b"], "fuse": str(fuse)}
    )
    before = load_model(spec, task=TEXT).fingerprint
    fuse.touch()
    model = load_model(spec, task=TEXT)
    assert model.fingerprint == before
    with pytest.raises(ModelError, match="the teacher was called"):
        assert model.layers


def three_things() -> tuple[int, int, int]:
    return 1, 2, 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "cannot import"),
        ("ray_distill.testing.models:nobody", "cannot import"),
        ("ray_distill.testing.models:string", "not a function"),
        ("ray_distill.testing.models:tiny_text_model", "raised TypeError"),
        ("ray_distill.testing.models:tiny_tokenizer", "expected \\(module, processor, classes\\)"),
        (f"{__name__}:three_things", "torch.nn.Module"),
    ],
)
def test_functions_that_are_no_models_are_refused(name: str, message: str) -> None:
    """Whatever is wrong with a function is one ModelError naming it."""
    with pytest.raises(ModelError, match=message):
        load_model(name, task=TEXT)


def test_another_number_of_outputs_than_classes_is_refused() -> None:
    """The first use of a function's model checks its logits."""
    parts = tiny_text_model(["a", "b"])
    assert len(parts.classes) == 2
    model = load_model(TeacherConfig(model=f"{__name__}:lying_model"), task=TEXT)
    with pytest.raises(ModelError, match=r"expected \[1, 3\]"):
        assert model.widths


def lying_model() -> tuple[object, object, tuple[str, ...]]:
    parts = tiny_text_model(["a", "b"])
    return parts.module, parts.processor, ("a", "b", "c")


def test_a_function_that_can_spare_its_weights_is_not_asked_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading only the processor passes ``weights=False``; loading the model does not."""
    (tmp_path / "sparing.py").write_text(
        "from torch import nn\n"
        "from ray_distill.models.core.model import ModelParts\n"
        "from ray_distill.testing.models import tiny_text_model, tiny_text_processor\n"
        "def build(weights: bool = True) -> ModelParts:\n"
        "    if weights:\n"
        "        return tiny_text_model(classes=['a', 'b'])\n"
        "    return ModelParts(module=nn.Identity(), processor=tiny_text_processor(), classes=('unknown',))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = load_model("sparing:build", task=TEXT)
    assert model.classes == ("a", "b")
    assert load_processor("sparing:build", task=TEXT).fingerprint == model.processor.fingerprint


@pytest.mark.parametrize("inputs", ["text", "image"])
def test_models_that_answer_yes_or_no_are_refused_by_tasks_of_one_class(tmp_path: Path, inputs: str) -> None:
    """A problem type of several labels, or one logit: the message names the task that suits the inputs."""
    write = write_tiny_text_model if inputs == "text" else write_tiny_image_model
    for name, classes, fields in (
        ("declared", CLASSES, {"problem_type": "multi_label_classification"}),
        ("single", ("spam",), {}),
    ):
        folder = write(tmp_path / name, classes, seed=0)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))
        with pytest.raises(ModelError, match=f"use the task {inputs}_multi_label"):
            load_model(str(folder), task=f"{inputs}_classification")


def test_a_declared_softmax_over_classes_is_accepted(copy: Path) -> None:
    """A problem type of one label is what a classifier has."""
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"problem_type": "single_label_classification"}))
    assert load_model(str(copy), task=TEXT).classes == CLASSES
