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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ray_distill.cli.submit import check_address
from ray_distill.errors import ClusterError

ROOT = Path(__file__).parents[2]
#: Times that a head is started.
STARTS = 3


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where it answers, and its token."""

    address: str
    token: str


@contextmanager
def ray_head(folder: Path, *, cpus: int) -> Iterator[Head]:
    """Run a head while the block runs; its log goes to ``folder``. It is ended by its process group.

    A head that gives itself up while it starts, which it does after thirty seconds on a busy machine, is started again.
    """
    short = tempfile.mkdtemp(prefix="rd-", dir="/tmp")  # Ray's socket paths must stay below 108 characters
    log = folder / "head.log"
    process, head = _start(short, log, cpus)
    try:
        for _ in range(STARTS - 1):
            if _started(process, head, log):
                break
            process, head = _start(short, log, cpus)
        else:
            assert _started(process, head, log), log.read_text()
        yield head
    finally:
        _end(process)
        shutil.rmtree(short, ignore_errors=True)


def _start(short: str, log: Path, cpus: int) -> tuple["subprocess.Popen[bytes]", Head]:
    port, dashboard, agent, client, metrics = _free_ports(5)
    token = secrets.token_hex(16)
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--node-ip-address=127.0.0.1",
        "--include-dashboard=true",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}",
        f"--metrics-export-port={metrics}",
        f"--num-cpus={cpus}",
        "--object-store-memory=100000000",
        "--disable-usage-stats",
    ]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `python` of a job is this one
    environment = {**inherited, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_TMPDIR": short}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    return process, Head(address=f"http://127.0.0.1:{dashboard}", token=token)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


def _started(process: "subprocess.Popen[bytes]", head: Head, log: Path) -> bool:
    """Whether it came to run, and its dashboard answers: that it does before, and then still ends."""
    deadline = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < deadline, log.read_text()
        try:
            check_address(head.address, head.token)
            if "Ray runtime started" in log.read_text():
                return True
        except ClusterError:
            pass
        time.sleep(0.5)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it has left of itself
    return False


def _end(head: "subprocess.Popen[bytes]") -> None:
    head.terminate()  # `ray start --block` takes its own processes down with it
    try:
        head.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
