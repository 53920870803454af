"""A real Ray head with the token on, with its own ports and its own temporary folder: nobody else's is touched."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray_distill.errors import ClusterError
from ray_distill.runtime.submit import check_address

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where it answers, and its token."""

    address: str
    token: str


@contextmanager
def ray_head(folder: Path, *, cpus: int, store_bytes: int = 100_000_000) -> Iterator[Head]:
    """Run a head while the block runs; its log goes to ``folder``. It is ended by its process group."""
    short = tempfile.mkdtemp(prefix="rd-", dir="/tmp")  # Ray's socket paths must stay below 108 characters
    port, dashboard, agent, client, metrics = _free_ports(5)
    token = secrets.token_hex(16)
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}",
        "--node-ip-address=127.0.0.1", "--include-dashboard=true", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
        f"--metrics-export-port={metrics}", f"--num-cpus={cpus}", f"--object-store-memory={store_bytes}",
        "--disable-usage-stats",
    ]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `python` of a job is this one
    environment = {**inherited, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_TMPDIR": short}
    log = folder / "head.log"
    with log.open("wb") as output:
        head = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait(f"http://127.0.0.1:{dashboard}", token, head, log)
        yield Head(address=f"http://127.0.0.1:{dashboard}", token=token)
    finally:
        _end(head)
        shutil.rmtree(short, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


def _wait(address: str, token: str, head: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            check_address(address, token)
            return
        except ClusterError:
            if head.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(log.read_text()) from None
            time.sleep(0.5)


def _end(head: "subprocess.Popen[bytes]") -> None:
    head.terminate()  # `ray start --block` takes its own processes down with it
    try:
        head.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
