"""Report the progress of a task to the driver through a file in the campaign's storage.

The task replaces the file at most every `SECONDS`; the driver reads it while it waits. A task that ends sooner shows
nothing. No actor is needed, and a lost file costs only a line on the terminal.
"""

import math
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ray_distill.errors import StorageError
from ray_distill.runtime.core.console import Progress
from ray_distill.storage import files

#: Seconds between two writes of a task, and between two reads of the driver.
SECONDS = 2.0


class TaskProgress:
    """Writes how much of an activity is done; picklable, for use inside a task."""

    def __init__(self, url: str) -> None:
        self._url, self._written = url, -math.inf

    def __call__(self, activity: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` steps of an activity are done."""
        now = time.monotonic()
        if now - self._written >= SECONDS:
            self._written = now
            with suppress(StorageError):
                files.write_json(self._url, {"activity": activity, "done": done, "total": total})


class Followed:
    """Shows on the driver what a task reports: a bar, or a line in a log, for each activity."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._shown: Progress | None = None

    def poll(self) -> None:
        """Show what the task has reported since the last call."""
        try:
            if not files.exists(self.url):
                return
            found = files.read_json(self.url)
        except StorageError:
            return
        if self._shown is None or self._shown.task != found["activity"]:
            self.close()
            self._shown = Progress(found["activity"], found["total"], "steps").__enter__()
        self._shown.add(found["done"] - self._shown.done)

    def close(self) -> None:
        """End the bar."""
        if self._shown is not None:
            self._shown.__exit__(None, None, None)
            self._shown = None


@contextmanager
def followed(output: str) -> Iterator[Followed]:
    """Prepare the file of a task below the campaign's output, and delete it in the end."""
    found = Followed(files.join(output, "state", "progress", f"{uuid.uuid4().hex}.json"))
    try:
        yield found
    finally:
        found.close()
        with suppress(StorageError):
            files.delete(found.url)
