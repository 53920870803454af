"""Fixtures for all tests: repeatable property tests, and processes that find the modules of `tests.labs`.

``pytest --hypothesis-profile=search`` looks for new examples; ``--file-seconds`` limits the time of each test file.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.labs.file_times import pytest_addoption, pytest_configure

__all__ = ["pytest_addoption", "pytest_configure"]

ROOT = Path(__file__).parents[1]

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _tests_importable() -> Iterator[None]:
    """Let Ray workers, ranks and commands import this checkout and `tests.labs`."""
    with pytest.MonkeyPatch.context() as patch:
        rest = os.environ.get("PYTHONPATH")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *([rest] if rest else [])]))
        yield
