"""Record runs in MLflow, and spool them while the server is unavailable.

Each record of a run is an operation. It is written at once; if the server is unavailable, this operation and all
later ones wait in the spool and are replayed in order. This module catches every failure of tracking, so that tracking
never stops the recorded work.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ray_distill.redact import redact
from ray_distill.storage.proxies import proxy_of
from ray_distill.tracking.base import Dataset
from ray_distill.tracking.client import Client, is_unavailable, now_ms, root_cause
from ray_distill.tracking.logged_model import plain_example
from ray_distill.tracking.operations import (
    CreateRun,
    EndRun,
    LogArtifact,
    LogDataset,
    LogMetrics,
    LogModel,
    LogParams,
    Operation,
    ReopenRun,
    SetTags,
)
from ray_distill.tracking.records import clean_name, clean_tags, flatten, one_line, split_metrics
from ray_distill.tracking.spool import Spool, new_local_id
from ray_distill.tracking.views import DEFAULT_COLUMNS, review_url

logger = logging.getLogger(__name__)

BUFFER = 200  # most metric points in the buffer
BUFFER_SECONDS = 2.0
RETRY_SECONDS = 10.0  # between attempts to reach an unavailable server
MAX_ATTEMPTS = 3  # to write a record that fails although the server answers


class MlflowTracker:
    """A tracker of runs in one MLflow experiment; see `ray_distill.tracking.base.Tracker`."""

    def __init__(self, uri: str, experiment: str, spool: Path, *, columns: tuple[str, ...] = DEFAULT_COLUMNS) -> None:
        """Store the settings; the first run imports, opens and creates what is needed.

        Args:
            uri: an MLflow tracking URI: a server, or a database such as ``sqlite:////data/mlflow.db``.
            experiment: name of the MLflow experiment; created if it does not exist.
            spool: folder on a local disk for operations that must wait.
            columns: columns of the review table, see `views.DEFAULT_COLUMNS`.
        """
        self._uri = uri
        self._spool = Spool(spool)
        self._client = Client(
            self._uri, experiment, columns=columns, real_id=self._spool.real_id, is_mapped=self._spool.is_mapped
        )
        self._lock = threading.RLock()
        self._open: list[MlflowRun] = []
        self._unavailable_since: float | None = None
        self._retry_at = 0.0
        self._attempts = 0
        self._warned_runs: set[str] = set()
        self._last_start = 0

    @property
    def uri(self) -> str:
        """Tracking URI, as it was given."""
        return self._uri

    def review_url(self, run_id: str | None = None) -> str:
        """Return the address of a run, or of the table of all runs.

        While the server is unavailable, return the tracking URI.
        """
        try:
            return review_url(self._uri, self._client.experiment_id(), run_id and self._spool.real_id(run_id))
        except Exception as error:  # noqa: BLE001 - a missing address must not stop the work
            logger.debug("no address for run %s: %s", run_id, error)
            return self._uri

    @contextmanager
    def run(
        self, name: str, *, parent: str | None = None, run_id: str | None = None, tags: Mapping[str, str] | None = None
    ) -> Iterator["MlflowRun"]:
        """Open or reopen a run; the end of the block decides its status.

        The status is FINISHED, FAILED (with a tag ``error``) or KILLED.
        """
        run = MlflowRun(self, self._run_id(name, parent, run_id, clean_tags(tags or {})))
        self._open.append(run)
        try:
            yield run
        except (KeyboardInterrupt, SystemExit):
            run.end("KILLED")
            raise
        except BaseException as error:
            run.end("FAILED", error=one_line(error))
            raise
        else:
            run.end("FINISHED")
        finally:
            self._open.remove(run)

    def flush(self) -> int:
        """Write buffered metrics and replay the spool now; return the number of waiting operations."""
        with self._lock:
            for run in self._open:
                run.flush()
            self._retry_at = 0.0
            return self._replayed()

    def submit(self, operation: Operation) -> str | bool | None:
        """Write or spool an operation; return MLflow's response, None if there is none yet."""
        with self._lock:
            if self._replayed():
                self._keep(operation)
                return None
            try:
                return self._client.apply(operation)
            except Exception as error:  # noqa: BLE001 - failures of tracking must never stop the work
                self._failed(operation, error)
                return None

    def _replayed(self) -> int:
        """Replay the spool if a replay is due; return the number of waiting operations."""
        try:
            self._replay()
            return len(self._spool)
        except OSError as error:
            logger.warning("the operations that wait for MLflow at %s cannot be read: %s", self._uri, one_line(error))
            return 0

    def _run_id(self, name: str, parent: str | None, run_id: str | None, tags: dict[str, str]) -> str:
        if run_id is not None:
            if self.submit(ReopenRun(run=run_id, tags=tags)) is not False:
                return self._spool.real_id(run_id) or run_id
            logger.warning("%s has no run %s (any more): recording %s as a new run", self._uri, run_id, name)
        local = new_local_id()
        created = self.submit(CreateRun(run=local, name=name, parent=parent, start=self._start(), tags=tags))
        return str(created) if created else local

    def _start(self) -> int:
        """Return a start time that is unique in this process.

        It identifies a run whose creation is repeated.
        """
        self._last_start = max(now_ms(), self._last_start + 1)
        return self._last_start

    def _replay(self) -> None:
        if time.monotonic() < self._retry_at:
            return
        with self._spool.replaying() as mine:
            replayed = self._drain() if mine else 0
        if replayed is None:
            return
        if replayed:
            logger.warning("MLflow at %s is available again: wrote %d waiting records", self._uri, replayed)
        self._unavailable_since = None

    def _drain(self) -> int | None:
        """Write all waiting operations; return their number, None if the server is unavailable."""
        replayed = 0
        while (waiting := self._spool.first()) is not None:
            operation = waiting.operation
            try:
                answer = self._client.apply(operation, replayed=True)
            except Exception as error:  # noqa: BLE001 - failures of tracking must never stop the work
                if self._must_wait(error):
                    return None
                self._reject(operation, error)
            else:
                if isinstance(operation, CreateRun):
                    self._spool.map_id(operation.run, str(answer))
            self._spool.acknowledge(waiting)
            self._attempts = 0
            replayed += 1
        return replayed

    def _must_wait(self, error: Exception) -> bool:
        """Return whether the next operation must wait.

        An operation that fails although the server answers is tried `MAX_ATTEMPTS` times.
        """
        if not is_unavailable(error):
            return False
        if self._client.alive():
            self._attempts += 1
            if self._attempts >= MAX_ATTEMPTS:
                return False
        self._report_outage(error)
        return True

    def _failed(self, operation: Operation, error: Exception) -> None:
        if not is_unavailable(error):
            self._reject(operation, error)
            return
        self._report_outage(error)
        self._keep(operation)

    def _report_outage(self, error: Exception) -> None:
        """Log once per outage that records wait, and in which folder."""
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if self._unavailable_since is None:
            self._unavailable_since = time.monotonic()
            proxy = proxy_of(self._uri)
            logger.warning(
                "MLflow at %s is unavailable (%s): work continues, records wait in %s and are written when the "
                "server is available again%s",
                redact(self._uri),
                redact(one_line(root_cause(error))),
                self._spool.folder,
                "" if proxy is None else f"; {proxy.advice}",
            )

    def _keep(self, operation: Operation) -> None:
        """Append an operation to the spool, with a copy of the files that it names."""
        files = None
        try:
            if isinstance(operation, LogArtifact | LogModel):
                link = isinstance(operation, LogModel)
                files, path = self._spool.keep_files(Path(operation.path), link=link)
                operation = operation.model_copy(update={"path": str(path)})
            self._spool.append(operation, files)
        except OSError as error:
            logger.warning("lost a record (%s) of run %s: %s", operation.op, operation.run, one_line(error))

    def _reject(self, operation: Operation, error: Exception) -> None:
        reason = one_line(error)
        try:
            self._spool.reject(operation, reason)
        except OSError as failure:
            reason += f"; writing it to the spool failed too: {one_line(failure)}"
        level = logging.DEBUG if operation.run in self._warned_runs else logging.WARNING
        self._warned_runs.add(operation.run)
        logger.log(
            level,
            "MLflow at %s refused a record (%s) of run %s: %s; the record is in %s",
            self._uri,
            operation.op,
            operation.run,
            reason,
            self._spool.folder / "rejected.jsonl",
        )


class MlflowRun:
    """A run, see `ray_distill.tracking.base.Run`; metrics are buffered for at most two seconds."""

    def __init__(self, tracker: MlflowTracker, run_id: str) -> None:
        self._tracker = tracker
        self._run_id = run_id
        self._points: list[tuple[str, float, int, int]] = []
        self._oldest = 0.0
        self._lock = threading.Lock()

    @property
    def run_id(self) -> str:
        """Identifier that reopens this run; a local one if it began during an outage."""
        return self._run_id

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings; a conflict with a recorded value becomes a tag ``param_conflict.<name>``."""
        self._tracker.submit(LogParams(run=self._run_id, values=flatten(values)))

    def tags(self, values: Mapping[str, str]) -> None:
        """Record short facts; the tag ``description`` is Markdown, shown on the run's page."""
        self._tracker.submit(SetTags(run=self._run_id, tags=clean_tags(values)))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record numbers; NaN and infinities become tags ``unmeasured.<name>``."""
        finite, absent = split_metrics(values)
        if absent:
            self.tags(absent)
        time_ms = now_ms()
        with self._lock:
            if not self._points:
                self._oldest = time.monotonic()
            self._points += [(name, value, time_ms, step) for name, value in finite.items()]
            due = len(self._points) >= BUFFER or time.monotonic() - self._oldest >= BUFFER_SECONDS
        if due:
            self.flush()

    def artifact(self, path: Path, folder: str = "") -> None:
        """Upload a local file, or a folder under its own name."""
        self._tracker.submit(LogArtifact(run=self._run_id, path=str(path.absolute()), folder=folder))

    def dataset(self, dataset: Dataset) -> None:
        """Record a dataset as an input, under our own digest."""
        self._tracker.submit(
            LogDataset(
                run=self._run_id,
                name=dataset.name,
                digest=dataset.digest,
                source=redact(dataset.source),
                context=dataset.context,
                profile=dict(dataset.profile),
            )
        )

    def model(self, path: Path, *, name: str, task: str, example: Any, metrics: Mapping[str, float]) -> str | None:
        """Log a transformers directory as a model.

        Args:
            path: folder with config.json, model.safetensors and the files of the tokenizer or processor. The folder
                must not be changed afterwards.
            name: name of the model within the run.
            task: ``text_classification`` or ``image_classification``.
            example: one input or several: texts, or encoded images as bytes.
            metrics: figures shown beside the model.

        Returns:
            ``models:/m-…``; None while the server is unavailable. Logging the same files again (in the reopened run)
            returns the URI of the same model.

        Raises:
            ConfigError: the task or the example cannot be logged.
        """
        finite, _ = split_metrics(metrics)
        uri = self._tracker.submit(
            LogModel(
                run=self._run_id,
                path=str(path.absolute()),
                name=clean_name(name),
                task=task,
                example=tuple(plain_example(example, task)),
                metrics=finite,
                time=now_ms(),
            )
        )
        return None if uri is None else str(uri)

    def flush(self) -> None:
        """Write the buffered metrics."""
        with self._lock:
            points, self._points = self._points, []
        if points:
            self._tracker.submit(LogMetrics(run=self._run_id, points=tuple(points)))

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"], error: str | None = None) -> None:
        """Write the buffered metrics and close the run."""
        self.flush()
        tags = {} if error is None else {"error": error}
        self._tracker.submit(EndRun(run=self._run_id, status=status, tags=tags, time=now_ms()))
