"""An S3 server that fails as real ones do, for tests of what must stay true.

It is the server of `testing.s3`, and a share of the requests to it goes wrong, one request in a way, chosen by the
seed and the request's number. The operation may have taken effect when its answer is lost: a client that only
retries must cope with that.
"""

import json
import os
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import fsspec

from ray_distill.testing.s3 import forget_clients, s3_server

#: A WSGI application.
App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

#: How a request goes wrong. ``…-before``: nothing was done; ``…-after``: it was done, its answer is lost. ``hang``: no
#: answer until the client gives up. ``reset``: the connection is reset. ``truncated``: the answer's body is shorter
#: than its Content-Length, and the connection closed (an answer without a body is reset).
WAYS = (
    "500-before",
    "500-after",
    "503-before",
    "503-after",
    "hang-before",
    "hang-after",
    "reset-before",
    "reset-after",
    "truncated",
)
_ERRORS = {"500": ("500 Internal Server Error", "InternalError"), "503": ("503 Service Unavailable", "SlowDown")}


class FlakyServer:
    """Settings and counters of a flaky server; also the server's WSGI middleware."""

    def __init__(self, app: App, share: float, seed: int, ways: Sequence[str] = WAYS):
        self.url = ""
        """The bucket's URL."""
        self.share = share
        """Which part of the requests goes wrong; may be set while it serves."""
        self.requests = 0
        """Requests so far."""
        self.injected: Counter[str] = Counter()
        """How many requests have gone wrong in which way."""
        self._app, self._seed, self._ways = app, seed, tuple(ways)
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def stop(self) -> None:
        """Let the requests go that hang."""
        self._stopped.set()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request, or let it go wrong."""
        way = self._way()
        if way is None:
            return self._app(environ, start_response)
        if way.endswith("-before"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return self._fail(way, environ, start_response)
        kept: list[Any] = []
        answer = self._app(environ, lambda *head, **_: kept.extend(head))
        body = b"".join(answer)
        if way != "truncated":
            return self._fail(way, environ, start_response)
        if environ["REQUEST_METHOD"] == "HEAD" or len(body) < 2:
            return self._fail("reset-after", environ, start_response)
        start_response(kept[0], kept[1])
        return self._cut(body, environ["werkzeug.socket"])

    def _way(self) -> str | None:
        """Return how the next request fails; None if it does not."""
        with self._lock:
            rng = random.Random(f"{self._seed}/{self.requests}")
            self.requests += 1
            if rng.random() >= self.share:
                return None
            way = rng.choice(self._ways)
            self.injected[way] += 1
            return way

    def _fail(self, way: str, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        kind = way.split("-")[0]
        if kind in _ERRORS:
            status, code = _ERRORS[kind]
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]
        if kind == "hang":
            self._stopped.wait()
        return self._reset(environ["werkzeug.socket"])

    def _reset(self, connection: socket.socket) -> Iterator[bytes]:
        # The server's handler finds the end of its input, ends, and so drops the last reference to the connection.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
        connection.close()
        raise ConnectionResetError("injected")
        yield b""

    def _cut(self, body: bytes, connection: socket.socket) -> Iterator[bytes]:
        yield body[: len(body) // 2]
        connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError("injected")


@contextmanager
def flaky_s3_server(
    share: float = 0.05, seed: int = 0, ways: Sequence[str] = WAYS, client: Mapping[str, Any] | None = None
) -> Iterator[FlakyServer]:
    """Serve S3 as `testing.s3.s3_server` does, with one empty bucket, and make requests fail.

    Args:
        share: part of the requests that goes wrong; those that make the bucket do not.
        seed: equal seeds let the requests of equal numbers go wrong, in equal ways.
        ways: those of `WAYS` to choose from.
        client: settings of the S3 client (botocore's ``Config``) for this process and those it starts, given the way
            fsspec reads them, by ``FSSPEC_S3``; default: two seconds for a connection, and as many for an answer.
    """
    made: list[FlakyServer] = []

    def wrap(app: App) -> App:
        made.append(FlakyServer(app, 0.0, seed, ways))
        return made[0]

    settings = {"config_kwargs": dict(client or {"connect_timeout": 2, "read_timeout": 2})}
    with _fsspec_settings(settings), s3_server(wrap=wrap) as url:
        server = made[0]
        server.url, server.share, server.requests = url, share, 0
        try:
            yield server
        finally:
            server.share = 0.0
            server.stop()


@contextmanager
def _fsspec_settings(settings: dict[str, Any]) -> Iterator[None]:
    """Set fsspec's settings for S3 here, and in processes that are started here."""
    before, configured = os.environ.get("FSSPEC_S3"), fsspec.config.conf.get("s3")
    os.environ["FSSPEC_S3"] = json.dumps(settings)
    fsspec.config.conf["s3"] = settings
    forget_clients()
    try:
        yield
    finally:
        _restore(os.environ, "FSSPEC_S3", before)
        _restore(fsspec.config.conf, "s3", configured)
        forget_clients()


def _restore(values: Any, name: str, before: Any) -> None:
    if before is None:
        values.pop(name, None)
    else:
        values[name] = before
