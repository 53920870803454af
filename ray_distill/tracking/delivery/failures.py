"""Decide whether a record that was not accepted waits, is retried, or is set aside."""

from collections.abc import Iterator
from enum import Enum, auto


class NeverAccepted(Exception):
    """A record that no server can accept: its file is missing, or its run is unknown."""


class Failure(Enum):
    """The kinds of failure."""

    WAITS = auto()
    """Someone can mend it: a token, a missing driver, a full disk, a server that is down."""
    DOUBTFUL = auto()
    """The server fails; if it accepts other records meanwhile, the record is the cause."""
    FINAL = auto()
    """The server refuses the record's content."""


#: HTTP statuses of refusals that a configuration, a token or time mends: authorization, a wrong address, a proxy's
#: limits, conflicts between processes.
_MENDABLE = {401, 402, 403, 404, 405, 407, 408, 409, 411, 413, 421, 423, 425, 426, 429, 431, 451, 499, 511}
_REFUSED = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
_DRIVERS = ("sqlite3", "psycopg2", "psycopg", "pymysql", "MySQLdb", "pyodbc", "alembic")
#: Packages of artifact stores, whose errors concern credentials, buckets or the network.
_STORES = ("boto3", "botocore", "s3transfer", "google", "azure", "pyarrow", "paramiko", "hdfs")


def classify(error: BaseException, *, upload: bool = False) -> Failure:
    """Return the kind of a failure.

    Args:
        error: what MLflow, its artifact store or the network raised.
        upload: whether the record is a file; a server that fails while it stores files never means the record.
    """
    found = next((kind for cause in causes(error) if (kind := _kind(cause)) is not None), Failure.DOUBTFUL)
    return Failure.WAITS if upload and found is Failure.DOUBTFUL and _of_a_server(error) else found


def root_cause(error: BaseException) -> BaseException:
    """Return the innermost exception: "connection refused", not the four that wrap it."""
    return list(causes(error))[-1]


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that it was raised from, the innermost last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _kind(error: BaseException) -> Failure | None:
    """Return the kind of one exception of a chain; None where the next one decides."""
    if isinstance(error, NeverAccepted):
        return Failure.FINAL
    if isinstance(error, ImportError):
        return Failure.WAITS
    package = type(error).__module__.partition(".")[0]
    if package in _DRIVERS or package in _STORES:
        return Failure.WAITS
    if package == "sqlalchemy":
        return _database(error)
    if package == "mlflow":
        return _of_mlflow(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return _of_status(status)
    if _is_network(error):
        return Failure.DOUBTFUL
    return Failure.WAITS if isinstance(error, OSError) else None


def _database(error: BaseException) -> Failure:
    """Return the kind of an error of SQLAlchemy.

    A value that fits no column is final; a collision may not repeat.
    """
    kinds = {"DataError": Failure.FINAL, "IntegrityError": Failure.DOUBTFUL}
    return kinds.get(type(error).__name__, Failure.WAITS)


def _of_mlflow(error: BaseException) -> Failure | None:
    """Return the kind of an error of MLflow; None where it wraps another error."""
    wrapped = error.__cause__ or error.__context__
    if wrapped is not None and _kind(wrapped) is not None:
        return None
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return Failure.DOUBTFUL
    if error.error_code in _REFUSED:
        return Failure.FINAL
    return _of_status(error.get_http_status_code())


def _of_status(status: int) -> Failure:
    if status >= 500:
        return Failure.DOUBTFUL
    return Failure.WAITS if status in _MENDABLE or status < 400 else Failure.FINAL


def _is_network(error: BaseException) -> bool:
    import requests
    import urllib3

    return isinstance(error, ConnectionError | TimeoutError | requests.RequestException | urllib3.exceptions.HTTPError)


def _of_a_server(error: BaseException) -> bool:
    """Return whether a failure came from a server or the network."""
    return any(
        _is_network(cause)
        or type(cause).__module__.partition(".")[0] == "mlflow"
        or hasattr(getattr(cause, "response", None), "status_code")
        for cause in causes(error)
    )
