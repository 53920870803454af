"""Which failures wait, which are tried a few times, and which set a record aside."""

import errno
import sqlite3
from collections.abc import Callable

import pytest
import requests
import sqlalchemy
from botocore.exceptions import ClientError, NoCredentialsError
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, TEMPORARILY_UNAVAILABLE

from ray_distill.tracking.delivery.failures import Failure, NeverAccepted, classify, root_cause


def _wrapped(error: Exception, code: int) -> Exception:
    """Return an error as MLflow's database store raises it."""
    try:
        raise MlflowException(str(error), error_code=code) from error
    except MlflowException as found:
        return found


def _of_a_request(error: Exception) -> Exception:
    """Return an error as MLflow's client raises it: the cause is only its context."""
    try:
        try:
            raise error
        except Exception as inner:  # noqa: BLE001 - as MLflow does
            raise MlflowException(f"API request failed with exception {inner}")  # noqa: B904
    except MlflowException as found:
        return found


def _http(status: int) -> Exception:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("no", response=response)


def _sql(kind: Callable[..., Exception], message: str) -> Exception:
    return kind("INSERT", {}, sqlite3.OperationalError(message))


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'psycopg2'"),
        PermissionError(errno.EACCES, "Permission denied", "/srv/mlflow.db"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        NoCredentialsError(),
        ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "PutObject"),
        _wrapped(_sql(sqlalchemy.exc.OperationalError, "duplicate column name: x"), TEMPORARILY_UNAVAILABLE),
        _wrapped(_sql(sqlalchemy.exc.ProgrammingError, "no such table: runs"), BAD_REQUEST),
        _sql(sqlalchemy.exc.OperationalError, "database or disk is full"),
        RestException({"error_code": "PERMISSION_DENIED", "message": "no"}),
        RestException({"error_code": "ENDPOINT_NOT_FOUND", "message": "a wrong prefix"}),
        RestException({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "later"}),
        _http(413),
        _http(403),
    ],
    ids=str,
)
def test_what_someone_can_mend_waits(error: Exception) -> None:
    """A driver, a token, a disk, a schema that another process is creating."""
    assert classify(error) is Failure.WAITS


@pytest.mark.parametrize(
    "error",
    [
        _of_a_request(requests.ConnectionError("refused")),
        _of_a_request(requests.exceptions.RetryError("too many 503 error responses")),
        RestException({"error_code": "INTERNAL_ERROR", "message": "broken"}),
        MlflowException("a page that is not JSON"),
        _wrapped(_sql(sqlalchemy.exc.IntegrityError, "UNIQUE constraint failed"), BAD_REQUEST),
        TimeoutError("slow"),
        KeyError("a fault of a program"),
        _http(500),
    ],
    ids=str,
)
def test_a_failing_server_is_doubted(error: Exception) -> None:
    """Whether the record or the server is the cause shows when other records are accepted."""
    assert classify(error) is Failure.DOUBTFUL


@pytest.mark.parametrize(
    "error",
    [
        NeverAccepted("its file is missing"),
        RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "too long"}),
        RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}),
        _wrapped(sqlalchemy.exc.DataError("INSERT", {}, Exception("value too long")), BAD_REQUEST),
        _http(400),
    ],
    ids=str,
)
def test_what_can_never_be_accepted_is_final(error: Exception) -> None:
    """Its content is refused, whoever mends what."""
    assert classify(error) is Failure.FINAL


def test_a_server_that_cannot_store_a_file_does_not_doubt_the_file() -> None:
    """A full artifact store is mended; a fault of this program is not waited for forever."""
    assert classify(_http(500), upload=True) is Failure.WAITS
    assert classify(KeyError("x"), upload=True) is Failure.DOUBTFUL


def test_the_root_cause_is_the_innermost() -> None:
    """It says what happened; what wraps it says where."""
    assert str(root_cause(_of_a_request(requests.ConnectionError("refused")))) == "refused"
