"""The real small chat model: pruned and saved from its GGUF file, and a small part of the golden table run through."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.examples.docstrings import docstrings, fetch
from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.models.students.build import build_student
from ray_distill.runtime.core import connection
from ray_distill.testing.models import example
from tests.golden import language_table

pytestmark = pytest.mark.golden

TASK = "causal_lm"


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """Three of the thirty layers, as they were built from the packed file, and the folder they were saved in."""

    model: Model
    folder: Path


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    """Prune the teacher as it is published, one GGUF file."""
    packed = fetch(tmp_path_factory.mktemp("gguf"))
    teacher = TeacherConfig(model=str(packed.parent), max_length=64)
    student = StudentModel.model_validate({"from": "teacher_layers", "keep": 3})
    model = build_student(student, task=TASK, classes=(), teacher=teacher, seed=0)
    folder = tmp_path_factory.mktemp("pruned") / "teacher"
    save_model(model, folder, card="", metadata={})
    return Pruned(model=model, folder=folder)


def _logits(model: Model) -> torch.Tensor:
    with torch.inference_mode():
        return forward(model.module, example(model)).logits_BV[0]


def test_smollm2_is_pruned_saved_and_loaded(pruned: Pruned) -> None:
    """Three of its thirty layers, from the packed file: saved, they load with plain transformers to equal logits, tied
    embeddings are stored once, and the tokens are the teacher's."""
    model, saved = pruned.model, pruned.folder
    assert model.vocabulary == 49152 and model.describe["copied_layers"] == {"0": 0, "1": 14, "2": 29}
    again = load_model(str(saved), task=TASK)
    assert again.processor.fingerprint == model.processor.fingerprint
    assert torch.equal(_logits(again), _logits(model))
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(saved)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(saved / "model.safetensors")
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    text = "The capital of France is Paris."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def _taught(pruned: Pruned, texts: Sequence[str], folder: Path) -> None:
    """Train the layers on texts: cut out of thirty, they predict worse than by chance."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(pruned.folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(pruned.folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for start in range(0, len(texts), 4):
        batch = tokenizer(texts[start : start + 4], truncation=True, max_length=64, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_a_small_part_of_the_golden_table_is_made(
    pruned: Pruned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of the README on few texts: labels by real Ray, two students of one seed, every number and interval.

    A student that was trained predicts better than by chance over the vocabulary, and is not the teacher. The teacher
    has three layers here, and the whole vocabulary; `.ci/nightly` takes all thirty.
    """
    _taught(pruned, docstrings()[-80:], tmp_path / "teacher")
    arguments = ["--rows", "48", "--arms", "hybrid", "topk", "--seeds", "0", "--rates", "1e-3", "--keep", "2"]
    capsys.readouterr()
    threads = torch.get_num_threads()
    with connection.connected():
        language_table.main([str(tmp_path), *arguments])
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    number = r"\S+ \([^)]*\)"
    pattern = r"\| (top [^|]+) \| ([\d.]+)" + rf" \| ({number})" * 4
    rows = re.findall(pattern, out)
    assert [row[0] for row in rows] == ["top 16 and 32 draws", "top 50, tail bucket"], out
    for _, size, divergence, nll, _, _ in rows:
        assert 20 < float(size) < 120
        assert 0 < float(divergence.split()[0]) < 8
        assert float(nll.split()[0]) < 9.5
