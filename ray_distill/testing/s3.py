"""Run an S3 server on loopback, for tests on an object store."""

import logging
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import fsspec
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

REGION = "us-east-1"


@contextmanager
def s3_server(bucket: str = "distill", *, wrap: Callable[[Any], Any] = lambda app: app) -> Iterator[str]:
    """Serve S3 on a free port of 127.0.0.1, with one empty bucket; yield the bucket's URL.

    The process environment points at the server meanwhile, the way S3 clients read it, so that processes
    started inside find it too; `s3_environment` returns these variables.

    Args:
        bucket: its name.
        wrap: gets the server's WSGI application and gives the one that is served.
    """
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # else each request is a line on stderr
    with _serving(wrap(_one_at_a_time(DomainDispatcherApplication(create_backend_app)))) as endpoint:
        # Its state is the process's: objects of an earlier server of this process are still there.
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST"), timeout=30).close()
        with _environment(s3_environment(endpoint)):
            _filesystem().mkdir(bucket)
            yield f"s3://{bucket}"


def _one_at_a_time(app: Any) -> Any:
    """Serialise the writes of an application, which checks and creates a name in two steps.

    Between the two another thread may create it too, on a busy machine. S3 itself does not allow that.
    """
    lock = threading.Lock()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["REQUEST_METHOD"] != "PUT":
            return app(environ, start_response)
        with lock:
            return list(app(environ, start_response))

    return answer


@contextmanager
def _serving(app: Any) -> Iterator[str]:
    """Serve a WSGI application from a thread; yield its URL."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return the variables by which S3 clients find a server and its (invented) keys."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (*values, "AWS_SESSION_TOKEN", "AWS_PROFILE")}
    for name in before:
        os.environ.pop(name, None)
    os.environ.update(values)
    forget_clients()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        forget_clients()


def _filesystem() -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("s3", use_listings_cache=False)


def forget_clients() -> None:
    """Drop the clients that fsspec keeps, each with the endpoint it was made for."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
