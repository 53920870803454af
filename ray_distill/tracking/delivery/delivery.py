"""Deliver operations in order from a thread of their own.

A caller waits for the answer to its operation within its `Patience`. From the first operation that is not answered, all
go to the spool, and the thread replays them while the caller works.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ray_distill.tracking.client import Client
from ray_distill.tracking.delivery.connect import import_mlflow, mlflow_settings
from ray_distill.tracking.delivery.failures import Failure, NeverAccepted, classify
from ray_distill.tracking.delivery.order import Blocked, is_upload
from ray_distill.tracking.delivery.patience import Clock, Patience, patience_for, upload_seconds
from ray_distill.tracking.delivery.reports import Reports
from ray_distill.tracking.delivery.spool import Spool, Waiting
from ray_distill.tracking.delivery.worker import Job, Worker
from ray_distill.tracking.operations import CreateRun, LogModel, Operation, ReopenRun
from ray_distill.tracking.records import one_line

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # to write a record with which the server fails although it accepts others
_STEP = 0.05
T = TypeVar("T")
Answer = str | bool | None


class Delivery:
    """The operations of one command, on their way to one server."""

    def __init__(
        self,
        uri: str,
        spool: Spool,
        *,
        connect: Callable[[Callable[[str], str | None]], Client],
        patience: Patience | None = None,
        at_work: Callable[[], bool],
    ) -> None:
        """Start nothing yet.

        Args:
            uri: the MLflow tracking URI, for messages.
            spool: the queue of operations that wait.
            connect: returns the writer of operations; its argument returns the server's id of a run.
            patience: the longest waits; default: `patience_for` the URI.
            at_work: whether runs are open, so that waiting operations are tried again from time to time.
        """
        self._reports = Reports(uri, spool.folder)
        self._spool = spool
        self._client = connect(self.real_id)
        self._patience = patience or patience_for(uri)
        self._clock = Clock(self._patience)
        self._worker = Worker("tracking", every=self._patience.retry, idle=lambda: at_work() and self._tick())
        self._lock = threading.RLock()
        self._unspooled: list[Operation] = []
        self._unspooled_lock = threading.Lock()
        self._writes_unspooled = False
        self._ids: dict[str, str] = {}
        self._retry_at = 0.0
        self._replaying: Job[None] | None = None
        self._accepted = 0

    def submit(self, operation: Operation) -> Answer:
        """Write or spool an operation; return MLflow's response, None if there is none yet."""
        with self._lock, mlflow_settings():
            if self.waiting() and not self._caught_up(operation):
                self._keep(operation)
                return None
            if not self._seconds(operation):
                self._keep(operation)
                self._replay_soon()
                return None
            return self._send(operation)

    def flush(self) -> int:
        """Replay the spool within the patience of a command's end.

        Returns:
            The number of waiting operations.
        """
        with self._lock, mlflow_settings():
            if self.waiting():
                self._retry_at = 0.0
                replay, began = self._worker.post(self._replay), time.monotonic()
                progress, accepted = began, self._accepted
                while not replay.finished(_STEP) and time.monotonic() - began < self._patience.end:
                    if self._accepted != accepted:
                        progress, accepted = time.monotonic(), self._accepted
                    if time.monotonic() - progress > self._patience.call:
                        break
                self._spool_all()
            return self.waiting()

    def call(self, function: Callable[[Client], T]) -> T:
        """Return the result of a read, within the patience for an answer.

        Raises:
            TimeoutError: there is none in time, or earlier operations wait.
            Exception: any error of MLflow or the network.
        """
        with self._lock, mlflow_settings():
            if self.waiting():
                raise TimeoutError("records wait")
            job = self._worker.post(lambda: function(self._client))
            with self._clock.waiting():
                if not job.finished(self._clock.left()):
                    raise TimeoutError("the server does not answer")
            return job.result()

    def waiting(self) -> int:
        """Return the number of operations that wait."""
        try:
            return len(self._spool) + len(self._unspooled)
        except OSError as error:
            self._reports.unreadable(error)
            return len(self._unspooled)

    def real_id(self, run_id: str) -> str | None:
        """Return the server's id of a run, or None if the run is not on the server yet."""
        return self._ids.get(run_id) or self._spool.real_id(run_id)

    def _caught_up(self, operation: Operation) -> bool:
        """Let the thread replay, if it is time; return whether nothing waits before the operation."""
        urgent = isinstance(operation, LogModel)
        if not urgent and time.monotonic() < self._retry_at:
            return False
        if urgent:
            self._retry_at = 0.0
        replay = self._replay_soon()
        if isinstance(operation, CreateRun | ReopenRun | LogModel):
            with self._clock.waiting():
                replay.finished(self._seconds(operation))
        return not self.waiting()

    def _seconds(self, operation: Operation) -> float:
        """Return the seconds that an answer may take.

        A model's answer decides whether the model is registered: it always has its time.
        """
        return self._patience.call if isinstance(operation, LogModel) else self._clock.left()

    def _send(self, operation: Operation) -> Answer:
        import_mlflow()  # here, because its seconds are not the server's
        sending = _Sending(operation)
        job = self._worker.post(lambda: self._apply(sending))
        try:
            with self._clock.waiting():
                finished = job.finished(self._seconds(operation))
            if not finished and isinstance(operation, LogModel):
                finished = job.finished(upload_seconds(Path(operation.path)))
        finally:
            if not job.finished():
                self._doubt(sending)
        return sending.answer

    def _doubt(self, sending: "_Sending") -> None:
        """Spool an operation whose answer did not come in time; it is deleted when the answer comes."""
        with sending.lock:
            if sending.ended:
                return
            sending.kept = self._keep(sending.operation)
            sending.given_up = True
        self._outage(TimeoutError(f"no answer within {self._patience.call:g} s"))

    def _apply(self, sending: "_Sending") -> None:
        """Write an operation, in the thread."""
        operation, failure, alive = sending.operation, None, True
        try:
            sending.answer = self._client.apply(operation, replayed=False)
        except Exception as error:  # noqa: BLE001 - failures of tracking must never stop the work
            failure = error
            alive = _is_final(operation, error) or self._client.alive()
        with sending.lock:
            sending.ended = True
            if failure is not None:
                self._failed(sending, failure, alive=alive)
                return
            self._count_accepted(operation, sending.answer)
            if sending.given_up and sending.kept is not None:
                self._answered_late(sending.kept, sending.answer)

    def _failed(self, sending: "_Sending", error: Exception, *, alive: bool) -> None:
        if _is_final(sending.operation, error):
            self._reject(sending.operation, error, sending.kept)
            return
        if alive:
            self._later(sending.operation, error)
        else:
            self._outage(error)
        if not sending.given_up:
            self._keep(sending.operation)

    def _answered_late(self, kept: Waiting, answer: Answer) -> None:
        """Delete an operation from the spool, after an answer that came late.

        If another process has created the run meanwhile, delete this one.
        """
        operation = kept.operation
        if isinstance(operation, CreateRun):
            known = self._spool.real_id(operation.run)
            if known is not None and known != answer:
                self._ids[operation.run] = known
                self._client.discard(str(answer))
                return
        self._acknowledge(kept)

    def _count_accepted(self, operation: Operation, answer: Answer) -> None:
        self._accepted += 1
        if isinstance(operation, CreateRun):
            self._ids[operation.run] = str(answer)

    def _replay_soon(self) -> Job[None]:
        """Return a replay that has not ended; one is enough, because it goes on until nothing waits."""
        if self._replaying is None or self._replaying.finished():
            self._replaying = self._worker.post(self._replay)
        return self._replaying

    def _tick(self) -> bool:
        """Replay while the caller works."""
        if self.waiting():
            self._replay()
        return True

    def _replay(self) -> None:
        """Write what waits, unless another process does."""
        if time.monotonic() < self._retry_at:
            return
        try:
            with self._spool.replaying() as mine:
                before = self._accepted
                done = self._drain() if mine else not len(self._spool)
            if done and self._drain_unspooled():
                self._reports.recovery(self._accepted - before)
        except OSError as error:
            self._reports.unreadable(error)

    def _drain(self) -> bool:
        """Write all waiting operations that are accepted; return False if the server is unavailable.

        An operation that waits lets later ones of its run wait too, so that their order stays.
        """
        blocked, number = Blocked(), 0
        while (waiting := self._spool.first(number)) is not None:
            number, operation = waiting.number, waiting.operation
            if blocked.has(operation):
                continue
            try:
                answer = self._client.apply(operation, replayed=True)
            except Exception as error:  # noqa: BLE001 - failures of tracking must never stop the work
                verdict = self._judge(waiting, error)
                if verdict is None:
                    return False
                if verdict:
                    blocked.add(operation)
                continue
            self._delivered(operation, answer)
            self._acknowledge(waiting)
        return True

    def _judge(self, waiting: Waiting, error: Exception) -> bool | None:
        """Return whether an operation waits; None if all must, because the server is unavailable."""
        operation = waiting.operation
        failure = classify(error, upload=is_upload(operation))
        if failure is not Failure.FINAL:
            if not self._client.alive():
                self._outage(error)
                return None
            if failure is Failure.WAITS or self._spool.count_attempt(waiting) < MAX_ATTEMPTS:
                self._later(operation, error)
                return True
        self._reject(operation, error, waiting)
        return False

    def _delivered(self, operation: Operation, answer: Answer) -> None:
        self._count_accepted(operation, answer)
        if isinstance(operation, CreateRun):
            self._spool.map_id(operation.run, str(answer))

    def _acknowledge(self, waiting: Waiting) -> None:
        """Delete a delivered operation; if the disk is full it is repeated, without effect."""
        try:
            if isinstance(waiting.operation, CreateRun):
                self._spool.map_id(waiting.operation.run, self._ids[waiting.operation.run])
            self._spool.acknowledge(waiting)
        except OSError as error:
            logger.debug("a delivered operation stays in the spool: %s", one_line(error))

    def _keep(self, operation: Operation) -> Waiting | None:
        """Append an operation and a copy of its files to the spool; return its place.

        While the disk of the spool is full, operations wait in memory.
        """
        with self._unspooled_lock:
            self._unspooled.append(operation)
            return None if self._writes_unspooled else self._move_to_spool()

    def _move_to_spool(self) -> Waiting | None:
        kept = None
        while self._unspooled:
            try:
                kept = self._spool.keep(self._unspooled[0])
            except NeverAccepted as error:
                self._reject(self._unspooled[0], error)
            except OSError as error:
                self._reports.no_room(error)
                return None
            self._unspooled.pop(0)
        return kept

    def _spool_all(self) -> None:
        """Store the operations that wait in memory; report those that will be lost."""
        with self._unspooled_lock:
            if not self._writes_unspooled:
                self._move_to_spool()
            if self._unspooled:
                self._reports.lost(len(self._unspooled))

    def _drain_unspooled(self) -> bool:
        """Write operations for which the spool's disk had no room; return whether all were."""
        with self._unspooled_lock:
            self._writes_unspooled = True
        try:
            while self._unspooled:
                if not self._write_unspooled(self._unspooled[0]):
                    return False
                self._unspooled.pop(0)
            return True
        finally:
            with self._unspooled_lock:
                self._writes_unspooled = False

    def _write_unspooled(self, operation: Operation) -> bool:
        try:
            answer = self._client.apply(operation, replayed=True)
        except Exception as error:  # noqa: BLE001 - failures of tracking must never stop the work
            if not _is_final(operation, error):
                self._outage(error)
                return False
            self._reject(operation, error)
        else:
            self._count_accepted(operation, answer)
        return True

    def _reject(self, operation: Operation, error: Exception, waiting: Waiting | None = None) -> None:
        """Set a record aside, and report the first of each run."""
        reason = one_line(error)
        try:
            if waiting is None:
                self._spool.reject(operation, reason)
            else:
                self._spool.set_aside(waiting, reason)
        except OSError as failure:
            reason += f"; writing it to the spool failed too: {one_line(failure)}"
        self._reports.refused(operation, reason)

    def _later(self, operation: Operation, error: Exception) -> None:
        self._retry_at = time.monotonic() + self._patience.retry
        self._reports.later(operation, error)

    def _outage(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + self._patience.retry
        self._reports.outage(error)


class _Sending:
    """An operation whose answer a caller waits for."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.lock = threading.Lock()
        self.answer: Answer = None
        self.ended = False
        self.given_up = False
        self.kept: Waiting | None = None


def _is_final(operation: Operation, error: Exception) -> bool:
    return classify(error, upload=is_upload(operation)) is Failure.FINAL
