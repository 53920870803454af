"""What both laboratories of SIGKILL need: a small cluster, a driver that may be killed, and scenarios one by one."""

import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

#: A node's death is noticed after some seconds instead of half a minute.
SYSTEM = {"health_check_period_ms": 500, "health_check_failure_threshold": 6, "health_check_initial_delay_ms": 500}


class TooLate(Exception):
    """The run was over before its victim was found: draw another moment."""


class Hung(Exception):
    """The run came to no end, or to one of its own."""


class Driver:
    """A process that carries out orders on a cluster, one after the other.

    Args:
        script: its file beside this one. It reads an order a line, as JSON, and answers each with a line that begins
            with ``done`` or ``failed``.
        folder: where it runs.
        address: the cluster's.
    """

    def __init__(self, script: str, folder: Path, address: str) -> None:
        self._told = folder / f"driver-{time.monotonic_ns()}.err"
        with self._told.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name(script)), address],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                bufsize=0,
            )

    def begin(self, order: Any) -> None:
        """Give an order."""
        self._process.stdin.write((json.dumps(order) + "\n").encode())  # type: ignore[union-attr]

    def answer(self, seconds: float = 0.0) -> str | None:
        """The answer to the order, or how the driver ended without one; None if neither comes within the seconds."""
        deadline, out = time.monotonic() + seconds, self._process.stdout
        while select.select([out], [], [], max(0.0, deadline - time.monotonic()))[0]:
            line = out.readline().decode()  # type: ignore[union-attr]
            if not line:
                return f"ended with exit status {self._process.wait()}:\n{self.tail()}"
            if line.startswith(("done", "failed")):
                return str(line.strip())
        return None

    def result(self, seconds: float) -> str:
        """The answer, waited for.

        Raises:
            Hung: none came.
        """
        answer = self.answer(seconds)
        if answer is None:
            raise Hung(f"no end after {seconds:g} s:\n{self.tail()}")
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let it end by itself, or end it."""
        self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self) -> str:
        return self._told.read_text(encoding="utf-8", errors="replace")[-3000:]


def findable(*folders: Path) -> str:
    """A PYTHONPATH on which other processes find the modules of these folders."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def small_cluster(name: str, modules: Sequence[Path], *, cpus: int, **system: int) -> Iterator[tuple[Path, Cluster]]:
    """A folder and a cluster of one node whose processes find the modules of these folders; both are gone afterwards.

    Args:
        name: of the folder's beginning.
        modules: folders put before those of PYTHONPATH.
        cpus: of the node.
        system: settings of Ray's beside those that let it notice a death sooner.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    os.environ.update(PYTHONPATH=findable(*modules), RAY_USAGE_STATS_ENABLED="0")
    cluster = Cluster(
        initialize_head=True,
        shutdown_at_exit=False,
        head_node_args={
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": 100_000_000,
            "_system_config": {**SYSTEM, **system},
        },
    )
    try:
        yield folder, cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def play(
    document: str,
    opening: Callable[[], Any],
    victims: Sequence[str],
    *,
    runs: int,
    about: Callable[[Any], str],
    columns: Mapping[str, Callable[[Any], int]],
) -> int:
    """A laboratory's command: scenarios for each victim in turn, told of as they end; 1 if one of them failed.

    Args:
        document: the module's docstring.
        opening: opens the laboratory, as a context.
        victims: who is killed.
        runs: how many scenarios, if the command line does not say.
        about: a line on the laboratory.
        columns: of the last table, beside runs and failures: what is summed over the scenarios of a victim.

    What a scenario gives has ``victim``, ``number``, ``ok``, ``told`` (what it cost, in words) and ``wrong``.
    """
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    parser.add_argument("--runs", type=int, default=runs, help="scenarios, shared out among the victims")
    parser.add_argument("--first", type=int, default=0, help="number of the first scenario, to go on after some")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tell = lambda text: print(text, flush=True)  # noqa: E731, T201
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else the cluster would outlive it
    outcomes: list[Any] = []
    with opening() as opened:
        tell(about(opened))
        for number in range(options.first, options.first + options.runs):
            started = time.monotonic()
            one = opened.scenario(victims[number % len(victims)], options.seed, number // len(victims))
            outcomes.append(one)
            tell(
                f"{one.victim} {one.number}: {'ok' if one.ok else 'FAILED'}, {one.told}, "
                f"{time.monotonic() - started:.0f} s " + " ".join(one.wrong)
            )
    tell("victim  " + "".join(f"{name:>10}" for name in ("runs", *columns, "failed")))
    for victim in victims:
        own = [one for one in outcomes if one.victim == victim]
        values = [len(own), *(sum(map(count, own)) for count in columns.values()), sum(not one.ok for one in own)]
        tell(f"{victim:<8}" + "".join(f"{value:>10}" for value in values))
    return 0 if all(one.ok for one in outcomes) else 1
