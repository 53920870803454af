"""The sources are as strict as they claim to be: lint, types, and the size of functions and modules."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted([*(ROOT / "ray_distill").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])
FOLDERS = sorted(path.parent for path in (ROOT / "ray_distill").rglob("__init__.py"))


def _run(*command: str) -> str:
    """Run a tool of this Python's environment; its output is the failure message."""
    program = str(Path(sys.executable).with_name(command[0]))
    result = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    return "" if result.returncode == 0 else result.stdout + result.stderr


def test_ruff_finds_nothing() -> None:
    """Style, imports, naming, docstrings, no prints, no bare except."""
    assert _run("ruff", "check", "--quiet", "--output-format=concise", ".") == ""


@pytest.mark.lint
def test_mypy_strict_finds_nothing() -> None:
    """Every function of the package is annotated, and the annotations agree."""
    assert _run("mypy") == ""


def test_modules_are_under_400_lines() -> None:
    """A longer one has two subjects."""
    long = {
        str(path.relative_to(ROOT)): count for path in MODULES if (count := len(path.read_text().splitlines())) >= 400
    }
    assert long == {}


def _functions() -> Iterator[tuple[str, int]]:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.lineno
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node.end_lineno - start + 1


def test_functions_are_under_60_lines() -> None:
    """About ten lines is the rule; sixty, without the docstring, is the end."""
    assert {name: lines for name, lines in _functions() if lines > 60} == {}


def _positional(path: Path) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [item.arg for item in (*node.args.posonlyargs, *node.args.args)]
            # torch calls `forward` of a function of autograd with its context, and by position alone.
            if names[:1] != ["ctx"]:
                yield (
                    f"{path.relative_to(ROOT)}:{node.lineno} {node.name}",
                    [n for n in names if n not in ("self", "cls")],
                )


def test_functions_take_at_most_four_positional_parameters() -> None:
    """Further ones are keyword-only, so that a call says what it passes."""
    found = [item for path in MODULES for item in _positional(path)]
    assert len(found) > 1000
    assert {where: names for where, names in found if len(names) > 4} == {}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_folder_says_what_it_is_for(folder: Path) -> None:
    """One docstring in its `__init__.py`."""
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


def test_nothing_is_left_undone_in_the_sources() -> None:
    """No stub and no note to self."""
    marks = ("TO" + "DO", "FIX" + "ME", "raise NotImpl" + "emented")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in MODULES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if any(mark in line for mark in marks)
    ]
    assert found == []
