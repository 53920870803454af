"""The walls between folders stand, and what should be quick to import is."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"deepspeed", "matplotlib", "mlflow", "pandas", "pyarrow", "ray", "sklearn", "torch", "transformers"}


def _imported_by(code: str) -> set[str]:
    """Top-level modules that a fresh Python holds after ``code``."""
    report = "import sys; print('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split())


def test_the_import_contracts_hold() -> None:
    """Ray, MLflow, DeepSpeed and torch only where the design allows them; teachers and students never meet."""
    command = str(Path(sys.executable).with_name("lint-imports"))
    result = subprocess.run(
        [command, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["submit", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """`--help` answers at once because no command is imported before it is chosen."""
    code = f"from ray_distill.cli.parser import main\ntry:\n    main({arguments})\nexcept SystemExit:\n    pass"
    assert _imported_by(code) & HEAVY == set()


@pytest.mark.parametrize("module", ["errors", "artifacts", "fingerprint", "config", "cli.submit", "cli.doctor"])
def test_seams_import_nothing_heavy(module: str) -> None:
    """References, configs and errors can be read by a script that has no torch or Ray at hand."""
    assert _imported_by(f"import ray_distill.{module}") & HEAVY == set()


@pytest.mark.parametrize("folder", ["storage", "snapshots", "labels", "sequences", "promotion"])
def test_the_store_is_readable_without_torch(folder: str) -> None:
    """Every module below the store imports in a Python that never loads torch, Ray or MLflow."""
    files = sorted((ROOT / "ray_distill" / folder).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    imported = _imported_by("\n".join(f"import {name}" for name in names))
    assert imported & {"torch", "transformers", "ray", "mlflow", "deepspeed"} == set()


def test_only_the_named_folders_import_ray() -> None:
    """Job files go through the runtime; outside of it and the tests nobody writes `import ray`."""
    importers = [
        str(path.relative_to(ROOT))
        for path in [*(ROOT / "ray_distill").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]
        if any(
            line.strip().startswith(("import ray\n", "import ray ", "from ray.", "from ray "))
            or line.strip() == "import ray"
            for line in path.read_text().splitlines()
        )
    ]
    assert [name for name in importers if not name.startswith(("ray_distill/runtime/", "ray_distill/cli/"))] == []


def test_no_module_of_the_labs_hides_an_installed_package() -> None:
    """Drivers of the labs run as scripts, whose folder comes first in the search for modules."""
    modules = {path.stem for path in (ROOT / "tests" / "labs").glob("*.py")}
    assert not modules & set(importlib.metadata.packages_distributions())
