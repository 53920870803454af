"""The real small chat model: pruned and saved from its GGUF file, and a small part of the golden table run through."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.examples.docstrings import fetch, write_teacher
from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import Model
from ray_distill.models.core.shape_probe import example
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.models.students.build_classifier import build_student

pytestmark = pytest.mark.golden

TASK = "causal_lm"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file as it is published."""
    return fetch(tmp_path_factory.mktemp("gguf"))


def _logits(model: Model) -> torch.Tensor:
    with torch.inference_mode():
        return forward(model.module, example(model.processor, "text")).logits_BV[0]


def test_smollm2_is_pruned_saved_and_loaded(packed: Path, tmp_path: Path) -> None:
    """Three of its thirty layers, from the packed file: saved, they load with plain transformers to equal logits, tied
    embeddings are stored once, and the tokens are the teacher's."""
    teacher = TeacherConfig(model=str(packed.parent), max_length=64)
    student = StudentModel.model_validate({"from": "teacher_layers", "keep": 3})
    model = build_student(student, task=TASK, classes=(), teacher=teacher, seed=0)
    assert model.vocabulary == 49152 and model.describe["copied_layers"] == {"0": 0, "1": 14, "2": 29}
    save_model(model, tmp_path / "saved", card="", metadata={})
    again = load_model(str(tmp_path / "saved"), task=TASK)
    assert again.processor.fingerprint == model.processor.fingerprint
    assert torch.equal(_logits(again), _logits(model))
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(tmp_path / "saved" / "model.safetensors")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "The capital of France is Paris."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_small_part_of_the_golden_table_is_made(packed: Path, tmp_path: Path) -> None:
    """The command of the README on few texts: labels by real Ray, two students of one seed, every number and interval.

    A student that was trained predicts better than by chance over the vocabulary, and is not the teacher.
    """
    write_teacher(tmp_path / "teacher", packed)
    done = subprocess.run(
        [
            sys.executable,
            Path(__file__).with_name("language_table.py"),
            tmp_path,
            "--rows",
            "60",
            "--arms",
            "hybrid",
            "topk",
            "--seeds",
            "0",
            "--rates",
            "1e-3",
        ],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    number = r"\S+ \([^)]*\)"
    pattern = r"\| (top [^|]+) \| ([\d.]+)" + rf" \| ({number})" * 4
    rows = re.findall(pattern, done.stdout)
    assert [row[0] for row in rows] == ["top 16 and 32 draws", "top 50, tail bucket"], done.stdout
    for _, size, divergence, nll, _, _ in rows:
        assert 20 < float(size) < 120
        assert 0 < float(divergence.split()[0]) < 8
        assert float(nll.split()[0]) < 9.5
