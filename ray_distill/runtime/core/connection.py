"""Attach to a Ray cluster or start an embedded one for a command, and run functions there."""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from ray_distill.errors import ClusterError, DistillError
from ray_distill.redact import hide
from ray_distill.runtime.core import console, task_progress
from ray_distill.runtime.core.task_progress import Followed

T = TypeVar("T")

#: Seconds that an autoscaler may take to add the requested nodes, and seconds between two counts of the nodes.
SCALE_SECONDS, POLL_SECONDS = 300.0, 5.0

#: Seconds that a closed execution may take to end.
EXECUTION_SECONDS = 15.0

#: Set while the embedded Ray of this process runs, which no autoscaler enlarges.
_embedded = threading.Event()

#: Idle workers that an embedded Ray keeps. By default, Ray ends all but one per core after a second, and the next block
#: of a pipeline waits ten seconds for the import of torch in a new process.
KEEP_WORKERS = {"num_workers_soft_limit": 16}


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Connect to a running Ray, the one at ``address`` or an embedded one, for the block.

    Raises:
        ClusterError: there is no cluster at ``address``, or it refuses the token.
    """
    if ray.is_initialized():
        yield
        return
    _start(address)
    try:
        yield
    finally:
        _embedded.clear()
        _let_executions_end()
        ray.shutdown()


def _let_executions_end() -> None:
    """Wait for the threads of Ray Data's closed executions.

    Ray Data itself waits two seconds for them. A thread that calls Ray during Ray's shutdown ends the process
    immediately, with exit status 1 and no message.
    """
    give_up = time.monotonic() + EXECUTION_SECONDS
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor-"):
            thread.join(max(0.0, give_up - time.monotonic()))


def _start(address: str | None) -> None:
    # Ray's core prints errors that it also raises, and warns about its own data actors; errors arrive as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            if other := os.environ.get("RAY_ADDRESS"):
                console.report(
                    f"RAY_ADDRESS={other} is not used: without --address this command starts a Ray of its own"
                )
            _have_a_token()
            # One core still needs two slots: the teacher's actor, and the tasks that read and write beside it.
            cores = max(2, os.cpu_count() or 2)
            # "local": without it, Ray would join any cluster that already runs on this machine.
            _patiently(
                lambda: ray.init(
                    address="local", num_cpus=cores, include_dashboard=False, _system_config=KEEP_WORKERS, **options
                )
            )
            _embedded.set()
        else:
            ray.init(address=address, **options)
    except Exception as error:  # a refused token raises a RayError; a node that starts too slowly a bare Exception
        where = "an embedded Ray cannot start" if address is None else f"no Ray cluster answers at {address}"
        raise ClusterError(f"{where}: {error}; run `ray-distill doctor` to find the reason") from error


def _have_a_token() -> None:
    """Set a token for an embedded Ray where the home, which Ray would use, is read-only."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")):
        return
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder / "auth_token", os.R_OK) or os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # a user without a home
        usable = False
    if not usable:
        os.environ["RAY_AUTH_TOKEN"] = token = secrets.token_hex(32)
        hide({token})


def _patiently(start: Callable[[], Any]) -> None:
    """Start Ray; retry once after its startup timeout, which is too short on a busy machine."""
    try:
        start()
    except Exception as error:  # Ray raises a bare Exception, which only its text identifies
        if "timed out during startup" not in str(error):
            raise
        ray.shutdown()
        start()


def on_cluster(
    function: Callable[..., T],
    *arguments: Any,
    cpus: float = 1,
    gpus: float = 0,
    what: str,
    options: Mapping[str, Any] | None = None,
    watch: Followed | None = None,
    **named: Any,
) -> T:
    """Run ``function`` as one Ray task and return its result.

    Args:
        function: importable; its arguments and result are sent over the cluster.
        arguments: positional arguments of the function.
        cpus: CPUs reserved.
        gpus: GPUs reserved.
        what: the activity, for error messages.
        options: further options of the task.
        watch: shows the progress that the task reports.
        named: keyword arguments of the function.

    Raises:
        DistillError: the error that the function raised, or ClusterError if the task itself was lost.
    """
    require_resources(cpus=cpus, gpus=gpus, what=what)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2, **(options or {}))(function)
    try:
        running = task.remote(*arguments, **named)
        while watch is not None and not ray.wait([running], timeout=task_progress.SECONDS)[0]:
            watch.poll()
        result: T = ray.get(running)
    except RayError as error:
        raise explain(error, what) from error
    return result


def require_resources(*, cpus: float, gpus: float, what: str) -> None:
    """Require a node with these resources, because Ray would wait for ever without it.

    Errors are those of `require_bundles`.
    """
    require_bundles([{"CPU": cpus, "GPU": gpus}], what)


def require_bundles(bundles: Sequence[Mapping[str, float]], what: str) -> None:
    """Require that each bundle fits some node, and that all bundles together fit the cluster.

    The limits of an autoscaler are unknown, so the autoscaler of a cluster that is too small gets a request for more
    nodes and `SCALE_SECONDS` to add them; an embedded Ray is refused at once.

    Args:
        bundles: resources by Ray's names, ``{"CPU": 4, "GPU": 1}``; each bundle is reserved on one node.
        what: the activity that needs the bundles, for the message.

    Raises:
        ClusterError: the bundles do not fit; the message names the required and the available resources.
    """
    required = [{name: amount for name, amount in bundle.items() if amount > 0} for bundle in bundles]
    if _fits(required, _nodes()) or (not _embedded.is_set() and _grown(required, what)):
        return
    best = ", ".join(_text({"CPU": 0, "GPU": 0, **node}) for node in _nodes())
    raise ClusterError(
        f"{what} needs {_several(bundles)}; the nodes have {best or 'none'}: change the resources in "
        "the config, or the cluster"
    )


def capacity(name: str) -> float:
    """Return the total of a resource (``CPU``, ``GPU``) over all nodes that are alive."""
    return sum(node.get(name, 0.0) for node in _nodes())


def _nodes() -> list[dict[str, float]]:
    """Return the resources of every node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fits(bundles: Sequence[Mapping[str, float]], nodes: Sequence[Mapping[str, float]]) -> bool:
    """Return whether each bundle fits a node, and all bundles together fit all nodes."""
    each = all(
        any(all(node.get(name, 0) >= amount for name, amount in bundle.items()) for node in nodes) for bundle in bundles
    )
    names = {name for bundle in bundles for name in bundle}
    return each and all(
        sum(bundle.get(name, 0) for bundle in bundles) <= sum(node.get(name, 0) for node in nodes) for name in names
    )


def _grown(bundles: Sequence[Mapping[str, float]], what: str) -> bool:
    """Request nodes from the autoscaler and wait for them; return whether they came.

    The request is withdrawn at the end, because it would outlive the job.
    """
    console.report(
        f"{what} needs {_several(bundles)}, more than the cluster has now: waiting up to {SCALE_SECONDS:g} s for it "
        "to grow"
    )
    give_up = time.monotonic() + SCALE_SECONDS
    _request(bundles)
    try:
        while not _fits(bundles, _nodes()):
            if time.monotonic() > give_up:
                return False
            time.sleep(POLL_SECONDS)
    finally:
        _request([])
    return True


def _request(bundles: Sequence[Mapping[str, float]]) -> None:
    """Send a request to the autoscaler from inside the cluster: a client at ray:// cannot."""
    task = ray.remote(num_cpus=0)(request_resources)
    try:
        ray.get(task.remote(bundles=[dict(bundle) for bundle in bundles]))
    except RayError as error:
        raise explain(error, "requesting more nodes") from error


def _several(bundles: Sequence[Mapping[str, float]]) -> str:
    """Return bundles in words; equal bundles are counted."""
    counts: dict[str, int] = {}
    for bundle in bundles:
        counts[_text(bundle)] = counts.get(_text(bundle), 0) + 1
    return " + ".join(f"{'' if count == 1 else f'{count} × '}{text} on one node" for text, count in counts.items())


def _text(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if name in resources)


def explain(error: BaseException, what: str) -> DistillError:
    """Return the package's error inside an error of Ray; else a ClusterError of one line."""
    seen: BaseException | None = error
    chain: list[BaseException] = []
    while seen is not None and seen not in chain:
        chain.append(seen)
        inner = getattr(seen, "cause", None)  # Ray's wrapper is of the wrapped class too, but its text is a traceback
        if inner is None and isinstance(seen, DistillError):
            return type(seen)(*seen.args) if seen.args else seen
        seen = inner or seen.__cause__ or seen.__context__
    lines = str(chain[-1]).strip().splitlines()
    return ClusterError(f"{what} failed: {type(chain[-1]).__name__}: {lines[-1] if lines else 'no message'}")
