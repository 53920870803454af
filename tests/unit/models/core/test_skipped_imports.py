"""Packages that are installed, and not imported where others would do so by themselves."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ray_distill.models.core.skipped_imports import without

SAVE = """
import sys, tempfile
from pathlib import Path
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.testing.models import write_tiny_text_model

folder = Path(sys.argv[1])
model = load_model(str(write_tiny_text_model(folder / "made", ("a", "b"), seed=0)), task="text_classification")
save_model(model, folder / "saved", card="", metadata={})
assert (folder / "saved" / "model.safetensors").is_file()
assert "deepspeed" not in sys.modules

import torch
from ray_distill.students.engines.deepspeed_engine import _import_deepspeed
assert _import_deepspeed(torch.device("cpu")).__name__ == "deepspeed" and "mlflow" not in sys.modules
"""


def test_a_package_is_hidden_in_the_block_alone() -> None:
    """An import fails and nothing finds the package, until the block ends; what is imported already stays."""
    sys.modules.pop("colorsys", None)
    with without("colorsys", "json"):
        assert find_spec("colorsys") is None
        with pytest.raises(ModuleNotFoundError):
            __import__("colorsys")
        assert __import__("json").dumps(1) == "1"
    assert find_spec("colorsys") is not None and __import__("colorsys").__name__ == "colorsys"


def test_saving_does_not_import_deepspeed_nor_does_deepspeed_import_mlflow(tmp_path: Path) -> None:
    """A fresh process writes, loads and saves a checkpoint, and then imports DeepSpeed for its engine."""
    ran = subprocess.run([sys.executable, "-c", SAVE, tmp_path], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
