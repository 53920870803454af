"""Fixtures for all tests: repeatable property tests, and processes that find the modules of `tests.labs`.

``pytest --hypothesis-profile=search`` looks for new examples; ``--file-seconds`` limits the time of each test file.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.labs.file_times import pytest_addoption, pytest_collection_modifyitems, pytest_configure

__all__ = ["pytest_addoption", "pytest_collection_modifyitems", "pytest_configure"]

ROOT = Path(__file__).parents[1]

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None)
settings.load_profile("repeatable")


#: Variables of a developer's own environment that commands, MLflow, Ray and HTTP clients follow; tests set their own.
FOREIGN = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"),
    *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "STORAGE_EMULATOR_HOST"),
    *(form for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for form in (name, name.upper())),
)


@pytest.fixture(scope="session", autouse=True)
def _no_foreign_variables() -> Iterator[None]:
    """Run all tests, and the processes that they start, without the developer's own settings."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def _no_tracking_place_of_another_test() -> Iterator[None]:
    """Undo ``mlflow.set_tracking_uri``, which sets the variable that campaigns follow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        yield


@pytest.fixture(scope="session", autouse=True)
def _tests_importable() -> Iterator[None]:
    """Let Ray workers, ranks and commands import this checkout and `tests.labs`."""
    with pytest.MonkeyPatch.context() as patch:
        rest = os.environ.get("PYTHONPATH")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *([rest] if rest else [])]))
        yield
