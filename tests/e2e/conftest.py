"""What the modules share: one embedded Ray, whose workers stay warm, with torch imported, and one whole campaign."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ray_distill.runtime.core import connection
from tests.labs.whole import WholeCampaign, run_whole


class SharedRay:
    """An embedded Ray that starts when it is first needed, and again after it was stopped."""

    def __init__(self) -> None:
        self._running = ExitStack()

    def start(self) -> None:
        """Start Ray, unless it runs."""
        self._running.enter_context(connection.connected())

    def stop(self) -> None:
        """Shut it down; the next module that needs Ray starts a new one."""
        self._running.close()


@pytest.fixture(scope="session")
def shared_ray(_tests_importable: None) -> Iterator[SharedRay]:
    """Return the session's Ray, which is stopped at the end of the session."""
    shared = SharedRay()
    yield shared
    shared.stop()


@pytest.fixture(scope="module")
def embedded_ray(shared_ray: SharedRay) -> None:
    """Have the session's Ray running when the module begins."""
    shared_ray.start()


@pytest.fixture
def no_ray(shared_ray: SharedRay) -> None:
    """Stop the session's Ray, for a test that must not need one."""
    shared_ray.stop()


@pytest.fixture(scope="session")
def whole(shared_ray: SharedRay, tmp_path_factory: pytest.TempPathFactory) -> WholeCampaign:
    """Return the campaign of `tests.labs.whole`, which the first module that needs it runs."""
    shared_ray.start()
    return run_whole(tmp_path_factory.mktemp("whole"))
