"""Log what happened to records: each cause once, without passwords."""

import logging
from pathlib import Path

from ray_distill.redact import redact
from ray_distill.storage.proxies import proxy_of
from ray_distill.tracking.delivery.failures import root_cause
from ray_distill.tracking.operations import Operation
from ray_distill.tracking.records import one_line

logger = logging.getLogger(__name__)


class Reports:
    """The warnings of one command about its tracking server."""

    def __init__(self, uri: str, folder: Path) -> None:
        """Store the tracking URI and the folder of the spool."""
        self._uri, self._proxy, self._folder = redact(uri), proxy_of(uri), folder
        self._unavailable = False
        self._recovered = False
        self._warned: set[str] = set()

    def outage(self, error: Exception) -> None:
        """Log once per outage that records wait, and in which folder."""
        if not self._unavailable:
            self._unavailable = True
            logger.warning(
                "MLflow at %s is unavailable (%s): work continues, records wait in %s and are written when the "
                "server is available again%s",
                self._uri,
                one_line(root_cause(error)),
                self._folder,
                "" if self._proxy is None else f"; {self._proxy.advice}",
            )

    def recovery(self, records: int) -> None:
        """Log the end of an outage, or that records of an earlier command were written."""
        if records and (self._unavailable or not self._recovered):
            self._recovered = True
            logger.warning("MLflow at %s is available again: wrote %d waiting records", self._uri, records)
        self._unavailable = False

    def later(self, operation: Operation, error: Exception) -> None:
        """Log once per command and cause that single records wait."""
        self._warn(
            f"later {type(root_cause(error)).__name__}",
            "MLflow at %s could not store a record (%s) of run %s now (%s): it waits in %s and is tried again, also by "
            "the next command",
            operation.op,
            operation.run,
            one_line(root_cause(error)),
            self._folder,
        )

    def refused(self, operation: Operation, reason: str) -> None:
        """Log the first record of a run that was set aside."""
        self._warn(
            f"refused {operation.run}",
            "MLflow at %s refused a record (%s) of run %s: %s; the record is in %s",
            operation.op,
            operation.run,
            reason,
            self._folder / "rejected.jsonl",
        )

    def no_room(self, error: OSError) -> None:
        """Log once that the spool's disk takes no records."""
        self._warn("no room", "records for MLflow at %s wait in memory, because %s", one_line(error))

    def unreadable(self, error: OSError) -> None:
        """Log once that the spool cannot be read."""
        self._warn("read", "the operations that wait for MLflow at %s cannot be read: %s", one_line(error))

    def lost(self, records: int) -> None:
        """Log the number of records for which neither the server nor the disk has room."""
        text = "%d records for MLflow at %s are lost when this command ends: no room in %s"
        logger.warning(text, records, self._uri, self._folder)

    def _warn(self, kind: str, message: str, *values: object) -> None:
        """Log a warning the first time, later ones for debugging."""
        level = logging.DEBUG if kind in self._warned else logging.WARNING
        self._warned.add(kind)
        logger.log(level, message, self._uri, *values)
