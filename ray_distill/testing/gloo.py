"""Run a function on several local processes joined by gloo, as a cluster does."""

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch import distributed

from ray_distill.errors import ClusterError

Result = TypeVar("Result")

#: Modules that the fork server imports, so that ranks do not: torch and the training take three CPU seconds a rank,
#: the models of transformers almost as much. Importing them starts neither an OpenMP pool nor CUDA, so forking
#: afterwards is safe. DeepSpeed is left to the ranks: its import probes the accelerator.
PRELOAD = (
    "torch",
    "ray_distill.students.run",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
    "transformers.models.t5.modeling_t5",
)


def run_gloo(function: Callable[..., Result], world: int, *args: Any, timeout: float = 300.0) -> list[Result]:
    """Call ``function(*args)`` on ``world`` processes and return their results by rank.

    Inside, ``torch.distributed`` is initialised with gloo and torch uses one thread. The processes are forked from a
    server that has imported torch and run nothing; they receive the environment that this process has now. ``function``
    and its arguments must be picklable and importable. The processes are ended when one fails or time is up.

    Args:
        function: what every rank runs.
        world: number of processes.
        args: its arguments, the same on every rank.
        timeout: seconds until the run is given up.

    Raises:
        ClusterError: a rank failed (its traceback is in the message), died, or did not end in time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD])
    environment = dict(os.environ)
    results: Any = context.Queue()
    port = free_port()
    shared = {"environment": environment, "function": function, "args": args, "results": results}
    workers = [
        context.Process(target=_work, args=(rank, world, port), kwargs=shared, daemon=True) for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    try:
        return _collect(workers, results, time.monotonic() + timeout)
    finally:
        for worker in workers:
            _end(worker)


def free_port() -> int:
    """Return a TCP port nobody listens on at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _end(worker: BaseProcess) -> None:
    """End a worker and whatever it started (a compiler, for instance)."""
    with contextlib.suppress(ProcessLookupError):
        if worker.pid is not None:
            os.killpg(worker.pid, signal.SIGKILL)
    worker.kill()
    worker.join()


def _work(
    rank: int,
    world: int,
    port: int,
    *,
    environment: dict[str, str],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    results: Any,
) -> None:
    os.setpgid(0, 0)
    os.environ.clear()  # the fork server's, which is as old as the first run
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world, timeout=timedelta(seconds=120)
        )
        # Plain bytes: torch would otherwise send tensors as file descriptors of a process that is about to end.
        data = pickle.dumps(function(*args))
        distributed.barrier()
    except BaseException:
        results.put((rank, False, traceback.format_exc()))
        raise
    results.put((rank, True, data))
    distributed.destroy_process_group()


def _collect(workers: Sequence[BaseProcess], results: Any, deadline: float) -> list[Any]:
    """Wait for every rank's answer; the first failure ends the wait."""
    found: dict[int, Any] = {}
    while len(found) < len(workers):
        waiting = [rank for rank in range(len(workers)) if rank not in found]
        # Read before the queue: a process that has ended has sent its answer, if it had one.
        codes = {rank: workers[rank].exitcode for rank in waiting}
        try:
            rank, success, value = results.get(timeout=0.2)
        except queue.Empty:
            _check_alive(codes, len(workers), deadline)
            continue
        if not success:
            raise ClusterError(f"rank {rank} of {len(workers)} failed:\n{value}")
        found[rank] = pickle.loads(value)
    return [found[rank] for rank in range(len(workers))]


def _check_alive(codes: Mapping[int, int | None], world: int, deadline: float) -> None:
    """Raise if a rank without an answer has ended, by its exit code, or if time is up."""
    for rank, code in codes.items():
        if code is not None:
            how = f"died of signal {-code}" if code < 0 else f"ended with exit status {code} and without an answer"
            raise ClusterError(f"rank {rank} of {world} {how}")
    if time.monotonic() > deadline:
        raise ClusterError(f"ranks {[*codes]} of {world} did not end in time")
