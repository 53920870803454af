"""Write operations to MLflow; the only module that writes runs to a tracking server.

Every operation is idempotent: a run is identified by its name and start time, metrics by (key, step, timestamp),
params and tags by their value, datasets by name and digest, models by the digest of their files. Therefore `spool` can
replay an operation whose response was lost.
"""

import getpass
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ray_distill.redact import redact
from ray_distill.tracking.delivery.connect import import_mlflow, new_client, upload_timeout
from ray_distill.tracking.delivery.failures import NeverAccepted
from ray_distill.tracking.logged_model import log_model
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
from ray_distill.tracking.records import MAX_DIGEST, split_params
from ray_distill.tracking.relocate import ARTIFACTS
from ray_distill.tracking.sqlite_uri import sqlite_file
from ray_distill.tracking.views import DESCRIPTION, TITLE, experiment_tags

logger = logging.getLogger(__name__)

_PARENT = "mlflow.parentRunId"
#: Error of a run whose process ended without closing it.
ABANDONED = "the process that recorded this run ended without closing it"


class Client:
    """A writer of operations to one experiment of one server; it connects with the first one."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        columns: tuple[str, ...],
        real_id: Callable[[str], str | None],
        is_mapped: Callable[[str], bool],
        is_open: Callable[[str], bool] = lambda run_id: False,
    ) -> None:
        """Store the settings.

        Args:
            uri: MLflow tracking URI.
            experiment: name of the experiment.
            columns: columns of the review table, see `views`.
            real_id: returns the server's id of a run, or None.
            is_mapped: returns whether a run of the server has a local id.
            is_open: returns whether a living process has a run open.
        """
        self._uri = uri
        self._experiment = experiment
        self._columns = columns
        self._real_id = real_id
        self._is_mapped = is_mapped
        self._is_open = is_open
        self._mlflow: Any = None
        self._experiment_id: str | None = None

    def apply(self, operation: Operation, *, replayed: bool = False) -> str | bool | None:
        """Write one operation.

        Returns:
            The run's id for `CreateRun`, the model's URI for `LogModel`, whether the run exists for `ReopenRun`.

        Raises:
            Exception: any error of MLflow, its artifact store or the network; `failures` distinguishes them.
            NeverAccepted: the operation's run was never created on this server, or its file does not exist.
        """
        with upload_timeout() if isinstance(operation, LogArtifact | LogModel) else nullcontext():
            if isinstance(operation, CreateRun):
                return self._create(operation, replayed=replayed)
            if isinstance(operation, AbandonRun):
                self._abandon(operation)
                return None
            run_id = self._real_id(operation.run)
            if run_id is None:
                raise NeverAccepted(f"run {operation.run} is unknown to the server and to this spool")
            return self._write(run_id, operation)

    def _write(self, run_id: str, operation: Operation) -> str | bool | None:
        match operation:
            case ReopenRun():
                return self._reopen(run_id, operation)
            case LogModel():
                return self._model(run_id, operation)
            case LogParams():
                self._params(run_id, operation)
            case SetTags():
                self._tags(run_id, operation.tags)
            case LogMetrics():
                self._metrics(run_id, operation)
            case LogArtifact():
                self._artifact(run_id, operation)
            case LogDataset():
                self._dataset(run_id, operation)
            case EndRun():
                self._end(run_id, operation)
        return None

    def alive(self) -> bool:
        """Return whether the server accepts a minimal record.

        A server with a full disk still answers reads.
        """
        try:
            self._experiment_id = None  # it may have been deleted
            kind = next(iter(experiment_tags(self._columns).items()))
            self._connected().set_experiment_tag(self.experiment_id(), *kind)
        except Exception as error:  # noqa: BLE001 - any failure means "no"
            logger.debug("%s does not answer: %s", redact(self._uri), redact(str(error)))
            return False
        return True

    def discard(self, run_id: str) -> None:
        """Delete a run that was created twice."""
        try:
            self._connected().delete_run(run_id)
        except Exception as error:  # noqa: BLE001 - an empty run more does no harm
            logger.debug("the run %s stays: %s", run_id, redact(str(error)))

    def experiment_id(self) -> str:
        """Return the experiment's id; create the experiment, or restore a deleted one."""
        if self._experiment_id is None:
            self._experiment_id = _id(self._find_experiment(self._connected()))
        return self._experiment_id

    def _connected(self) -> Any:
        if self._mlflow is None:
            self._mlflow = new_client(self._uri)
        return self._mlflow

    def _find_experiment(self, client: Any) -> str:
        found = client.get_experiment_by_name(self._experiment)
        tags = experiment_tags(self._columns)
        if found is None:
            created = self._create_experiment(client, tags)
            if created is not None:
                return created
            found = client.get_experiment_by_name(self._experiment)
        if found.lifecycle_stage == "deleted":
            logger.warning("the MLflow experiment %r was deleted: restoring it with its runs", self._experiment)
            client.restore_experiment(found.experiment_id)
        for key, value in tags.items():
            if found.tags.get(key) != value:
                client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def _create_experiment(self, client: Any, tags: Mapping[str, str]) -> str | None:
        """Create the experiment; return None if another process has just done so."""
        from mlflow.exceptions import MlflowException

        try:
            return str(client.create_experiment(self._experiment, _artifact_location(self._uri), dict(tags)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return None

    def _create(self, operation: CreateRun, *, replayed: bool) -> str:
        experiment_id = self.experiment_id()
        client = self._connected()
        if replayed and (found := self._find_run(client, experiment_id, operation)):
            return found
        run = client.create_run(experiment_id, operation.start, self._run_tags(operation), operation.name)
        return _id(str(run.info.run_id))

    def _find_run(self, client: Any, experiment_id: str, operation: CreateRun | AbandonRun) -> str | None:
        """Find the run of a ``create`` whose response was lost."""
        runs = client.search_runs([experiment_id], f"attributes.start_time = {operation.start}")
        ids = [str(run.info.run_id) for run in runs if run.info.run_name == operation.name]
        return next((run_id for run_id in ids if not self._is_mapped(run_id)), None)

    def _run_tags(self, operation: CreateRun) -> dict[str, str]:
        tags = {"mlflow.source.name": "ray-distill", "mlflow.user": _user(), **_named(operation.tags)}
        if (parent := operation.parent) is not None:
            real = self._real_id(parent)
            tags["parent_not_found" if real is None else _PARENT] = real or parent
        return tags

    def _abandon(self, operation: AbandonRun) -> None:
        """Close a run of a dead process; none if it is unknown, closed, or open in a living process."""
        client, run_id = self._connected(), self._real_id(operation.run)
        if run_id is None and operation.start:
            run_id = self._find_run(client, self.experiment_id(), operation)
        if run_id is None or self._is_open(run_id) or self._is_open(operation.run):
            return
        run = self._existing(run_id)
        if run is not None and run.info.status == "RUNNING":
            self._tags(run_id, {"error": ABANDONED})
            client.set_terminated(run_id, "KILLED", max(operation.time, run.info.start_time))

    def _existing(self, run_id: str) -> Any:
        """Return a run; None if this server has no such run (any more)."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._connected().get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return None if run.info.lifecycle_stage == "deleted" else run

    def _reopen(self, run_id: str, operation: ReopenRun) -> bool:
        """Set a run's status to running; return False if this server has no such run (any more)."""
        client, run = self._connected(), self._existing(run_id)
        if run is None:
            return False
        if "error" in run.data.tags:
            client.delete_tag(run_id, "error")
        client.update_run(run_id, status="RUNNING")
        self._tags(run_id, operation.tags)
        return True

    def _params(self, run_id: str, operation: LogParams) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._new_params(run_id, operation)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            self._new_params(run_id, operation)  # another process recorded another value meanwhile

    def _new_params(self, run_id: str, operation: LogParams) -> None:
        from mlflow.entities import Param

        client = self._connected()
        fresh, conflicts = split_params(operation.values, client.get_run(run_id).data.params)
        for part in _parts(list(fresh.items()), 100):
            client.log_batch(run_id, params=[Param(key, value) for key, value in part], synchronous=True)
        self._tags(run_id, conflicts)

    def _tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        if title := tags.get(TITLE):
            self._connected().update_run(run_id, name=title)
        for part in _parts(list(_named(tags).items()), 100):
            self._connected().log_batch(run_id, tags=[RunTag(key, value) for key, value in part], synchronous=True)

    def _metrics(self, run_id: str, operation: LogMetrics) -> None:
        from mlflow.entities import Metric

        for part in _parts(list(operation.points), 500):
            metrics = [Metric(name, value, time, step) for name, value, time, step in part]
            self._connected().log_batch(run_id, metrics=metrics, synchronous=True)

    def _artifact(self, run_id: str, operation: LogArtifact) -> None:
        if not Path(operation.path).exists():
            raise NeverAccepted(f"the artifact {operation.path} does not exist")
        self._connected().log_artifact(run_id, operation.path, operation.folder or None)

    def _dataset(self, run_id: str, operation: LogDataset) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        scheme = operation.source.partition("://")[0] if "://" in operation.source else "local"
        dataset = Dataset(
            name=operation.name,
            digest=operation.digest[:MAX_DIGEST],
            source_type=scheme,
            source=json.dumps({"uri": operation.source}),
            profile=json.dumps({**operation.profile, "digest": operation.digest}),
        )
        tags = [InputTag("mlflow.data.context", operation.context)]
        self._connected().log_inputs(run_id, [DatasetInput(dataset, tags)])

    def _model(self, run_id: str, operation: LogModel) -> str:
        import_mlflow()
        if not Path(operation.path).exists():
            raise NeverAccepted(f"the model {operation.path} does not exist")
        return log_model(self._connected(), experiment_id=self.experiment_id(), run_id=run_id, operation=operation)

    def _end(self, run_id: str, operation: EndRun) -> None:
        self._tags(run_id, operation.tags)
        self._connected().set_terminated(run_id, operation.status, operation.time)


def _id(value: str) -> str:
    """Return an id of the server's; a proxy or another service may answer without one."""
    if not value:
        raise ConnectionError("the answer has no id: this is not an MLflow server")
    return value


def _artifact_location(uri: str) -> str | None:
    """Return a folder beside a local SQLite file; None lets a server choose the location."""
    database = sqlite_file(uri)
    return None if database is None else (database.parent / ARTIFACTS).as_uri()


def _named(tags: Mapping[str, str]) -> dict[str, str]:
    """Rename the description to MLflow's note, and drop the title, which is the run's name."""
    return {"mlflow.note.content" if key == DESCRIPTION else key: value for key, value in tags.items() if key != TITLE}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return str(os.getuid())


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def now_ms() -> int:
    """Return the time in milliseconds since 1970, MLflow's unit."""
    return time.time_ns() // 1_000_000
