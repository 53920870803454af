"""What every end-to-end test needs: Ray's workers and the commands must find the teachers of `campaign_lab`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _findable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        rest = os.environ.get("PYTHONPATH")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *([rest] if rest else [])]))
        yield
