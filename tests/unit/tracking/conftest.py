"""A fresh MLflow database for each test, copied from one that a new user's first run made."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FIRST_USE = """
import logging, sys, pathlib
logging.basicConfig(level=logging.INFO)
from ray_distill.config import TrackingConfig
from ray_distill.tracking.open import open_tracker
from ray_distill.tracking.place import place_of
place = place_of(TrackingConfig(uri="sqlite:///deep/mlflow.db"), campaign="first", output_url="out")
assert "mlflow" not in sys.modules
tracker, _ = open_tracker(place, spool=pathlib.Path("spool"))
assert "mlflow" not in sys.modules
with tracker.run("first") as run:
    run.metrics({"a": 1.0})
assert tracker.flush() == 0
"""


@pytest.fixture(scope="session")
def first_use(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A fresh database as a new user's first run makes it, and all that run printed."""
    folder = tmp_path_factory.mktemp("first")
    found = subprocess.run([sys.executable, "-c", FIRST_USE], cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return folder, found.stdout + found.stderr


@pytest.fixture
def db(first_use: tuple[Path, str], tmp_path: Path) -> str:
    """URI of a database of this test's own."""
    shutil.copy(first_use[0] / "deep" / "mlflow.db", tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
