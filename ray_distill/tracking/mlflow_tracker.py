"""Record runs in MLflow, and spool them while the server is unavailable.

Each record of a run is an operation. `delivery` writes it at once; if the server is unavailable or silent, this
operation and all later ones wait in the spool and are replayed in order. No failure of tracking stops the work.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ray_distill.redact import redact
from ray_distill.tracking.base import Dataset
from ray_distill.tracking.client import Client, now_ms
from ray_distill.tracking.delivery.connect import mlflow_settings
from ray_distill.tracking.delivery.delivery import Answer, Delivery
from ray_distill.tracking.delivery.drivers import Driver, OpenRun, abandoned, open_runs
from ray_distill.tracking.delivery.patience import Patience
from ray_distill.tracking.delivery.spool import Spool, new_local_id
from ray_distill.tracking.logged_model import plain_example
from ray_distill.tracking.operations import (
    AbandonRun,
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
from ray_distill.tracking.views import DEFAULT_COLUMNS, review_url

logger = logging.getLogger(__name__)

BUFFER = 200  # most metric points in the buffer
BUFFER_SECONDS = 2.0


class MlflowTracker:
    """A tracker of runs in one MLflow experiment; see `ray_distill.tracking.base.Tracker`."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        spool: Path,
        *,
        columns: tuple[str, ...] = DEFAULT_COLUMNS,
        patience: Patience | None = None,
    ) -> None:
        """Store the settings; the first run imports, opens and creates what is needed.

        Args:
            uri: an MLflow tracking URI: a server, or a database such as ``sqlite:////data/mlflow.db``.
            experiment: name of the MLflow experiment; created if it does not exist.
            spool: folder on a local disk for operations that must wait.
            columns: columns of the review table, see `views.DEFAULT_COLUMNS`.
            patience: the longest waits for the server; default: `patience_for` the URI.
        """
        self._uri = uri
        self._spool = Spool(spool)
        self._drivers = spool / "drivers"
        self._driver = Driver(self._drivers)
        self._open: list[MlflowRun] = []
        self._delivery = Delivery(
            uri,
            self._spool,
            connect=lambda real_id: Client(
                uri,
                experiment,
                columns=columns,
                real_id=real_id,
                is_mapped=self._spool.is_mapped,
                is_open=lambda run_id: run_id in open_runs(self._drivers),
            ),
            patience=patience,
            at_work=lambda: bool(self._open),
        )
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
            experiment_id = self._delivery.call(lambda client: client.experiment_id())
            return review_url(self._uri, experiment_id, run_id and self._delivery.real_id(run_id))
        except Exception as error:  # noqa: BLE001 - a missing address must not stop the work
            logger.debug("no address for run %s: %s", run_id, one_line(error))
            return self._uri

    @contextmanager
    def run(
        self, name: str, *, parent: str | None = None, run_id: str | None = None, tags: Mapping[str, str] | None = None
    ) -> Iterator["MlflowRun"]:
        """Open or reopen a run; the end of the block decides its status.

        The status is FINISHED, FAILED (with a tag ``error``) or KILLED. The first run also closes those that dead
        processes left open.
        """
        with mlflow_settings():
            if not self._open:
                self._close_abandoned()
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
                self._leave(run.run_id)

    def flush(self) -> int:
        """Write buffered metrics and replay the spool now; return the number of waiting operations."""
        for run in self._open:
            run.flush()
        return self._delivery.flush()

    def submit(self, operation: Operation) -> Answer:
        """Write or spool an operation; return MLflow's response, None if there is none yet."""
        self._journal(self._driver.alive)
        return self._delivery.submit(operation)

    def _run_id(self, name: str, parent: str | None, run_id: str | None, tags: dict[str, str]) -> str:
        if run_id is not None:
            known = self._delivery.real_id(run_id) or run_id
            self._journal(lambda: self._driver.opened(OpenRun(run=known, name=name, start=0)))
            if self.submit(ReopenRun(run=run_id, tags=tags)) is not False:
                return known
            self._journal(lambda: self._driver.closed(known))
            text = "%s has no run %s (any more): recording %s as a new run"
            logger.warning(text, redact(self._uri), run_id, name)
        local, start = new_local_id(), self._start()
        self._journal(lambda: self._driver.opened(OpenRun(run=local, name=name, start=start)))
        created = self.submit(CreateRun(run=local, name=name, parent=parent, start=start, tags=tags))
        if not created:
            return local
        self._journal(lambda: self._driver.renamed(local, str(created)))
        return str(created)

    def _start(self) -> int:
        """Return a start time that is unique in this process.

        It identifies a run whose creation is repeated.
        """
        self._last_start = max(now_ms(), self._last_start + 1)
        return self._last_start

    def _close_abandoned(self) -> None:
        """Close the runs of dead processes; of those that live, none."""

        def close() -> None:
            with abandoned(self._drivers) as found:
                for run, time_ms in found:
                    self._delivery.submit(AbandonRun(run=run.run, name=run.name, start=run.start, time=time_ms))

        self._journal(close)

    def _leave(self, run_id: str) -> None:
        self._journal(lambda: self._driver.closed(run_id))
        if not self._open:
            self._journal(self._driver.release)

    def _journal(self, write: Callable[[], None]) -> None:
        """Call a method of the driver's journal; without one, a run that is killed stays open."""
        try:
            write()
        except OSError as error:
            logger.debug("the open runs cannot be stored in %s: %s", self._drivers, one_line(error))


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
