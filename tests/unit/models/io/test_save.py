"""Loading and saving language models: from safetensors, GGUF and functions, and back with what they were told."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.config.labels import HeadConfig, LanguageConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.models.core.checkpoint_files import METADATA_FILE, checkpoint_digest, is_saved
from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import Model, ModelParts
from ray_distill.models.io.load import load_model, load_processor
from ray_distill.models.io.save import save_model
from ray_distill.models.students.build import build_student
from ray_distill.models.text.lm_processor import LanguageProcessor
from ray_distill.models.text.processors import text_processor
from ray_distill.storage.files import upload_folder
from ray_distill.testing.models import example, tiny_causal_tokenizer, tiny_text_processor, write_tiny_causal_model

TASK, V = "causal_lm", 264
CHAT = LanguageConfig(format="chat", roles=("user", "assistant"), long="reject")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_causal_model(tmp_path_factory.mktemp("models") / "causal", seed=0)


def _gguf(folder: Path, name: str = "tiny.gguf") -> Path:
    """A Llama of two layers, width 32 and 262 tokens, one of them merged, in one GGUF file."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, width = tiny_causal_tokenizer(), 32
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) + ["qz"]
    writer = gguf.GGUFWriter(folder / name, "llama")
    for add, value in (
        (writer.add_context_length, 128),
        (writer.add_embedding_length, width),
        (writer.add_block_count, 2),
        (writer.add_feed_forward_length, 64),
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 2),
        (writer.add_rope_freq_base, 1e4),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_vocab_size, len(pieces)),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_token_list, pieces),
        (writer.add_token_merges, ["q z"]),
        (writer.add_bos_token_id, 1),
        (writer.add_token_types, [3] * 5 + [1] * 257),
        (writer.add_eos_token_id, 2),
        (writer.add_pad_token_id, 0),
        (writer.add_chat_template, tokenizer.chat_template),
    ):
        add(value)  # type: ignore[operator]
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (len(pieces), width),
        "output": (len(pieces), width),
        "output_norm": (width,),
    }
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.{part}": shape
            for part, shape in {
                "attn_q": (width, width),
                "attn_k": (width // 2, width),
                "attn_v": (width // 2, width),
                "attn_output": (width, width),
                "ffn_gate": (64, width),
                "ffn_up": (64, width),
                "ffn_down": (width, 64),
                "attn_norm": (width,),
                "ffn_norm": (width,),
            }.items()
        }
    for part, shape in shapes.items():
        writer.add_tensor(f"{part}.weight", rng.normal(0, 0.2, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _gguf(tmp_path_factory.mktemp("gguf") / "model")


def _logits(model: Model) -> torch.Tensor:
    with torch.inference_mode():
        return forward(model.module, example(model)).logits_BV[0]


def test_a_language_model_has_a_vocabulary_and_no_classes(folder: Path) -> None:
    """V is the width of the logits, wider than the tokenizer's; settings of the config reach the processor."""
    model = load_model(TeacherConfig(model=str(folder), language=CHAT, max_length=99), task=TASK)
    assert (model.classes, model.vocabulary, model.class_count) == ((), V, V)
    assert isinstance(model.processor, LanguageProcessor)
    assert model.processor.settings == CHAT and model.processor.max_length == 99
    assert model.widths == (32, 32, 32) and len(model.processor.tokenizer) < V
    spec = TeacherConfig(model=str(folder), language=CHAT, max_length=99)
    assert load_processor(spec, task=TASK).fingerprint == model.processor.fingerprint


def test_the_fingerprint_of_a_teacher_depends_on_what_is_learnt(folder: Path) -> None:
    """Format, roles and length change it, as the dtype does."""
    found = {
        load_model(TeacherConfig(model=str(folder), **settings), task=TASK).fingerprint
        for settings in (
            {},
            {"language": CHAT},
            {"language": LanguageConfig(format="chat")},
            {"max_length": 5},
            {"dtype": "bfloat16"},
        )
    }
    assert len(found) == 5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_teacher_is_the_one_transformers_loads(folder: Path, dtype: str) -> None:
    """Weights are cast; rotary angles, which lose their digits in a cast, keep them: bit-equal to from_pretrained."""
    model = load_model(TeacherConfig(model=str(folder), dtype=dtype), task=TASK)
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    assert {parameter.dtype for parameter in model.module.parameters()} == {getattr(torch, dtype)}
    assert model.module.get_buffer("model.rotary_emb.inv_freq").dtype == torch.float32
    ids = torch.randint(V, (2, 100))
    with torch.no_grad():
        assert torch.equal(model.module(input_ids=ids).logits, plain.eval()(input_ids=ids).logits)


def test_a_teacher_may_be_spread_over_its_devices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without GPUs they are one, and the answers those of a teacher in one place; it needs accelerate, and is for
    checkpoints alone. (Over several GPUs it is accelerate's to run.)"""
    spec = TeacherConfig(model=str(folder), device="spread", dtype="bfloat16")
    spread, whole = (load_model(one, task=TASK) for one in (spec, spec.model_copy(update={"device": "cpu"})))
    assert torch.equal(_logits(spread), _logits(whole)) or torch.cuda.is_available()
    assert spread.fingerprint == whole.fingerprint
    with pytest.raises(ConfigError, match="not for functions"):
        load_model(TeacherConfig(model=f"{__name__}:spoken", device="spread"), task=TASK)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ModelError, match="pip install accelerate"):
        load_model(spec, task=TASK)


def test_a_head_cannot_be_fitted_to_a_language_model(folder: Path) -> None:
    """`head` is for encoders without a classifier."""
    with pytest.raises(ConfigError, match="fits a classifier"):
        load_model(TeacherConfig(model=str(folder), head=HeadConfig()), task=TASK)


def test_forward_makes_no_cache_and_takes_packed_rows(folder: Path) -> None:
    """A batch with positions and no mask gives every document of a row the logits it has alone."""
    module = load_model(str(folder), task=TASK).module
    seen: list[Any] = []
    module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.past_key_values))
    documents = [torch.randint(V, (length,)) for length in (4, 6)]
    batch = {
        "input_ids": torch.cat(documents)[None],
        "position_ids": torch.cat([torch.arange(len(document)) for document in documents])[None],
    }
    with torch.no_grad():
        found = forward(module, batch, layers=(-1 % 3,))
        alone = torch.cat([forward(module, {"input_ids": document[None]}).logits_BV[0] for document in documents])
    torch.testing.assert_close(found.logits_BV[0], alone)
    assert found.mask_BL is None and found.hidden[2].shape == (1, 10, 32) and seen == [None] * 3
    assert torch.equal(forward(torch.nn.DataParallel(module), batch).logits_BV, found.logits_BV)


def test_a_gguf_folder_is_a_teacher(packed: Path) -> None:
    """Config, tokenizer and weights come from the one file; its tokens are those it was written with."""
    model = load_model(str(packed), task=TASK)
    assert model.vocabulary == 262 and model.widths == (32, 32, 32) and model.describe["parameters"] > 20_000
    found = load_processor(str(packed), task=TASK)
    assert found.fingerprint == model.processor.fingerprint
    text = "Distil, please: ünd  now."
    expected = tiny_causal_tokenizer()(text)["input_ids"]
    assert found.texts([text])["input_ids"].values.tolist() == expected
    chat = load_processor(TeacherConfig(model=str(packed), language=CHAT), task=TASK)
    features, reasons = chat.language(['[{"role": "user", "content": "a"}]'])  # type: ignore[attr-defined]
    assert not reasons and features["answered"].values.sum() > 0


def test_a_remote_gguf_is_the_same_teacher(packed: Path) -> None:
    """Through any fsspec URL; the processor needs the file too, and the digest is the file's."""
    upload_folder(packed, "memory://models/gguf")
    there = load_model("memory://models/gguf", task=TASK)
    assert there.fingerprint == load_model(str(packed), task=TASK).fingerprint
    assert load_processor("memory://models/gguf", task=TASK).fingerprint == there.processor.fingerprint
    assert there.describe["checkpoint"] == checkpoint_digest(packed)


def test_the_digest_is_of_the_weights_that_are_read(folder: Path, packed: Path, tmp_path: Path) -> None:
    """A GGUF beside safetensors is not read and changes nothing; one alone does, and a pinned revision sees it."""
    copy = Path(shutil.copytree(folder, tmp_path / "both"))
    shutil.copy(packed / "tiny.gguf", copy)
    assert checkpoint_digest(copy) == checkpoint_digest(folder)
    assert load_model(str(copy), task=TASK).fingerprint == load_model(str(folder), task=TASK).fingerprint
    alone = Path(shutil.copytree(packed, tmp_path / "alone"))
    assert checkpoint_digest(alone) == checkpoint_digest(packed)
    data = bytearray((alone / "tiny.gguf").read_bytes())
    data[-1] ^= 1
    (alone / "tiny.gguf").write_bytes(data)
    with pytest.raises(ModelError, match="have changed"):
        load_model(TeacherConfig(model=str(alone), revision=checkpoint_digest(packed)), task=TASK)


def test_several_gguf_files_are_refused(packed: Path, tmp_path: Path) -> None:
    """Which one is meant is not guessed."""
    copy = Path(shutil.copytree(packed, tmp_path / "two"))
    shutil.copy(copy / "tiny.gguf", copy / "other.gguf")
    for load in (load_model, load_processor):
        with pytest.raises(ModelError, match="2 GGUF files.*other.gguf, tiny.gguf"):
            load(str(copy), task=TASK)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_gguf_without_the_packages_says_how_to_get_them(
    packed: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the missing package and the command, for weights and tokenizer alike."""
    monkeypatch.setitem(sys.modules, package, None)
    for load in (load_model, load_processor):
        with pytest.raises(ModelError, match=f"optional packages gguf and accelerate.*pip install {package}"):
            load(str(packed), task=TASK)


def test_a_broken_gguf_is_one_model_error(packed: Path, tmp_path: Path) -> None:
    """A file that is cut short names the checkpoint."""
    (tmp_path / "tiny.gguf").write_bytes((packed / "tiny.gguf").read_bytes()[:1000])
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_model(str(tmp_path), task=TASK)


@pytest.mark.parametrize("source", ["safetensors", "tied", "gguf"])
def test_a_saved_student_loads_with_plain_transformers(packed: Path, tmp_path: Path, source: str) -> None:
    """Equal logits through AutoModelForCausalLM and AutoTokenizer; no class names; tied weights once."""
    place = (
        packed
        if source == "gguf"
        else write_tiny_causal_model(tmp_path / "teacher", seed=0, tie_word_embeddings=source == "tied")
    )
    teacher = TeacherConfig(model=str(place), language=CHAT, max_length=77)
    student = StudentModel.model_validate({"from": "teacher_layers", "keep": 1})
    model = build_student(student, task=TASK, classes=(), teacher=teacher, seed=0)
    digest = save_model(model, tmp_path / "saved", card="# card", metadata={"a": 1})
    assert digest == checkpoint_digest(tmp_path / "saved")
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    ids = tokenizer("Some text", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, model.module(input_ids=ids).logits)
    assert plain.generate(ids, max_new_tokens=3, do_sample=False).shape[1] <= ids.shape[1] + 3
    names = set(load_file(tmp_path / "saved" / "model.safetensors"))
    assert ("lm_head.weight" in names) == (source != "tied")
    assert "id2label" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_a_saved_model_remembers_what_it_was_told(folder: Path, tmp_path: Path) -> None:
    """A folder alone loads with the settings it was saved with; a teacher's config has its own."""
    model = load_model(TeacherConfig(model=str(folder), language=CHAT, max_length=77), task=TASK)
    save_model(model, tmp_path / "saved", card="", metadata={})
    for again in (
        load_model(str(tmp_path / "saved"), task=TASK).processor,
        load_processor(str(tmp_path / "saved"), task=TASK),
    ):
        assert again.fingerprint == model.processor.fingerprint
        assert again.settings == CHAT and again.max_length == 77  # type: ignore[attr-defined]
    told = load_processor(TeacherConfig(model=str(tmp_path / "saved")), task=TASK)
    assert told.settings == LanguageConfig()  # type: ignore[attr-defined]
    path = tmp_path / "saved" / METADATA_FILE
    forged = json.loads(path.read_text()) | {"language": {"format": "song"}}
    path.write_text(json.dumps(forged))
    with pytest.raises(ModelError, match=r"ray_distill\.json is damaged.*restore the files"):
        load_model(str(tmp_path / "saved"), task=TASK)
    del forged["content_digest"]
    path.write_text(json.dumps(forged))
    with pytest.raises(ModelError, match="language settings .* are damaged"):
        load_model(str(tmp_path / "saved"), task=TASK)


@pytest.mark.parametrize("tied", [False, True])
def test_gathered_weights_are_saved_as_the_modules_own(tmp_path: Path, tied: bool) -> None:
    """A full state gathered from shards has a copy of each weight under each name: tied ones are saved once still."""
    place = write_tiny_causal_model(tmp_path / "model", seed=0, tie_word_embeddings=tied)
    model = load_model(str(place), task=TASK)
    state = {name: value.detach().clone() + 1 for name, value in model.module.state_dict().items()}
    save_model(model, tmp_path / "saved", card="", metadata={}, state_dict=state)
    found = load_file(tmp_path / "saved" / "model.safetensors")
    assert ("lm_head.weight" in found) != tied
    again: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


def test_an_odd_generation_config_can_be_saved(tmp_path: Path) -> None:
    """Greedy decoding with a temperature, which transformers warns of and many checkpoints have, is kept."""
    place = write_tiny_causal_model(tmp_path / "model", seed=0)
    (place / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.6}))
    for number, student in enumerate(({"from": "config"}, {"from": "checkpoint", "model": str(place)})):
        model = build_student(
            StudentModel.model_validate(student), task=TASK, classes=(), seed=0, teacher=TeacherConfig(model=str(place))
        )
        save_model(model, tmp_path / str(number), card="", metadata={})
        kept = transformers.GenerationConfig.from_pretrained(tmp_path / str(number))
        assert kept.do_sample is False and kept.temperature == 0.6


def spoken(vocabulary: int = V, named: bool = False, config: bool = True, weights: bool = True) -> ModelParts:
    processor = text_processor(tiny_causal_tokenizer(), 100)
    settings = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    module: Any = transformers.LlamaForCausalLM(settings) if weights else torch.nn.Identity()
    names = tuple(map(str, range(vocabulary))) if named else ()
    return ModelParts(module=module if config else torch.nn.Sequential(module), processor=processor, classes=names)


@pytest.mark.parametrize("named", [False, True])
def test_a_function_may_give_a_language_model(tmp_path: Path, named: bool) -> None:
    """Its vocabulary is the module's config's, or the number of its names, which are not kept; settings reach it."""
    spec = TeacherConfig(model=f"{__name__}:spoken", arguments={"named": named}, language=CHAT)
    model = load_model(spec, task=TASK)
    assert (model.classes, model.vocabulary) == ((), V) and model.states.widths == (16, 16)
    assert model.processor.settings == CHAT  # type: ignore[attr-defined]
    assert load_processor(spec, task=TASK).fingerprint == model.processor.fingerprint
    assert not is_saved(str(tmp_path / "saved"))
    save_model(model, tmp_path / "saved", card="", metadata={})
    assert is_saved(str(tmp_path / "saved")), "a finished training of such a student must be skipped, too"
    again = load_model(str(tmp_path / "saved"), task=TASK)
    assert again.processor.fingerprint == model.processor.fingerprint
    assert torch.equal(_logits(again), _logits(model))


def bare() -> ModelParts:
    return ModelParts(module=torch.nn.Identity(), processor=tiny_text_processor(), classes=())


def test_a_function_that_says_no_vocabulary_is_refused() -> None:
    """Without names and without `config.vocab_size` nothing says how wide its logits are; classifiers need names."""
    with pytest.raises(ModelError, match="no config.vocab_size"):
        load_model(f"{__name__}:bare", task=TASK)
    with pytest.raises(ModelError, match="expected distinct names"):
        load_model(f"{__name__}:bare", task="text_classification")
