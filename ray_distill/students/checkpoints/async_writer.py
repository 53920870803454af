"""Write checkpoints during training.

A rank stops only while its state is copied to the local disk.

Each rank uploads its own files on a thread. The sum that every step computes anyway also counts the ranks whose upload
is complete, so that all ranks enter the next stage after the same step; the first rank then writes the marker, on its
thread, and removes the checkpoints that the policy does not keep. A checkpoint that is requested while another is under
way waits for it.
"""

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from ray_distill.config import CheckpointPolicy
from ray_distill.errors import DistillError, StorageError
from ray_distill.storage import files
from ray_distill.storage.scratch import Scratch
from ray_distill.students.checkpoints.store import complete, prune, upload
from ray_distill.students.process_group import Ranks

log = logging.getLogger(__name__)

#: Failed uploads in a row that end the run, because it would continue without usable checkpoints. Fewer are logged.
MAX_FAILED = 2


class CheckpointWriter:
    """Write one trial's checkpoints, one at a time.

    `start`, `advance` and `finish` are collective.

    Args:
        folder_url: the trial's folder of checkpoints.
        ranks: the process group.
        policy: which checkpoints are kept.
        plan: the plan that a run must have to resume from one of them.
        protect: URLs of checkpoints that must stay: the one this run was resumed from.
    """

    def __init__(
        self,
        folder_url: str,
        ranks: Ranks,
        policy: CheckpointPolicy,
        *,
        plan: Mapping[str, Any],
        protect: Sequence[str] = (),
    ) -> None:
        self._folder_url, self._ranks, self._policy = folder_url, ranks, policy
        self._plan, self._protect = plan, tuple(protect)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._stage: Literal["none", "uploading", "completing"] = "none"
        self._work: Future[Any] | None = None
        self._local: Scratch | None = None
        self._url, self._step, self._state = "", 0, dict[str, Any]()
        self._failed = 0

    @property
    def under_way(self) -> bool:
        """Return whether a checkpoint is being written; the same on every rank."""
        return self._stage != "none"

    @property
    def idle(self) -> bool:
        """Return whether this rank has completed its part of the stage.

        Call `advance` when all ranks have.
        """
        return self._work is None or self._work.done()

    def start(self, write: Callable[[Path], None], *, step: int, state: Mapping[str, Any]) -> str | None:
        """Copy this rank's state to the local disk and begin to upload it.

        Args:
            write: writes this rank's files into a local folder; called once on every rank.
            step: number of completed steps.
            state: state of the loop as plain JSON.

        Returns:
            URL of the previous checkpoint, if it was still under way and is complete now.
        """
        before = self.finish()
        attempt = self._ranks.share(uuid.uuid4().hex[:8])
        self._url, self._step, self._state = files.join(self._folder_url, f"{step:08d}-{attempt}"), step, dict(state)
        self._local = Scratch("checkpoint")
        local = self._local.path
        write(local)
        self._work = self._thread.submit(_outcome, lambda: upload(local, self._url, f"rank-{self._ranks.rank}"))
        self._stage = "uploading"
        return before

    def advance(self) -> str | None:
        """Enter the next stage after this rank's part; return the URL of a checkpoint completed now.

        Raises:
            StorageError: on every rank, if the part of any rank failed in two checkpoints in a row.
        """
        found, error = (None, None) if self._work is None else self._work.result()
        self._work = None
        if self._stage == "uploading":
            self._drop_local()
        outcomes = self._ranks.gather((found, error))
        errors = [error for _, error in outcomes if error is not None]
        if errors:
            self._stage = "none"
            self._give_up(errors[0])
            return None
        if self._stage == "uploading":
            if self._ranks.first:
                digests = {name: digest for part, _ in outcomes for name, digest in part.items()}
                self._work = self._thread.submit(_outcome, lambda: self._complete(digests))
            self._stage = "completing"
            return None
        self._stage, self._failed = "none", 0
        return self._url

    def finish(self) -> str | None:
        """Wait on all ranks for the checkpoint under way; return its URL if it is complete now."""
        url = None
        while self.under_way:
            url = self.advance()
        return url

    def close(self) -> None:
        """Shut the thread down; a checkpoint under way stays incomplete, without a marker.

        This method is not collective, so it may be called after a failure of one rank.
        """
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._drop_local()

    def _complete(self, digests: Mapping[str, str]) -> None:
        complete(self._url, digests, step=self._step, plan=self._plan, state=self._state)
        try:
            prune(self._folder_url, self._policy, {self._url, *self._protect})
        except StorageError as error:  # the checkpoint is complete; the next call of `prune` removes the old ones
            log.warning("old checkpoints in %s could not be removed: %s", self._folder_url, error)

    def _give_up(self, error: DistillError) -> None:
        self._failed += 1
        if self._failed >= MAX_FAILED or not isinstance(error, StorageError):
            raise error
        log.warning(
            "the checkpoint after step %d could not be saved, training goes on without it: %s", self._step, error
        )

    def _drop_local(self) -> None:
        if self._local is not None:
            self._local.remove()
            self._local = None


def _outcome(work: Callable[[], Any]) -> tuple[Any, DistillError | None]:
    """Return the result of some work, or its `DistillError`, to be gathered by all ranks.

    Other errors are raised, and end this rank.
    """
    try:
        return work(), None
    except DistillError as error:
        return None, error
