"""Ray for one command: attach to a cluster, or start an embedded one; and one way to run a function there."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from ray_distill.errors import ClusterError, DistillError
from ray_distill.runtime.core.console import say

T = TypeVar("T")

#: How long an autoscaler may take to add the nodes that are asked for, and how often they are counted.
SCALE_SECONDS, POLL_SECONDS = 300.0, 5.0

#: How long an execution that was closed may still be finishing.
EXECUTION_SECONDS = 15.0

#: Set while Ray is the one started here: nothing will ever be added to it.
_embedded = threading.Event()

#: Idle workers that an embedded Ray keeps. By default it ends all but one a core after a second, and the next block of
#: a pipeline waits ten seconds for torch to be imported again.
KEEP_WORKERS = {"num_workers_soft_limit": 16}


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Have Ray while the block runs: the one already there, the one at ``address``, or an embedded one.

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
    """Wait for Ray Data's threads, which it gives two seconds to end when an execution is closed.

    A thread that asks Ray while Ray is being shut down ends the process on the spot: exit status 1, and no word.
    """
    give_up = time.monotonic() + EXECUTION_SECONDS
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor-"):
            thread.join(max(0.0, give_up - time.monotonic()))


def _start(address: str | None) -> None:
    # Ray's core prints what it also raises, and warns of its own data actors; what fails reaches us as an exception.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            # One core still needs two slots: the teacher's actor, and the tasks that read and write beside it.
            cores = max(2, os.cpu_count() or 2)
            # "local": without it Ray would join whatever cluster was started on this machine before.
            _patiently(
                lambda: ray.init(
                    address="local", num_cpus=cores, include_dashboard=False, _system_config=KEEP_WORKERS, **options
                )
            )
            _embedded.set()
        else:
            ray.init(address=address, **options)
    except Exception as error:  # a refused token is a RayError; a node that starts too slowly a bare Exception
        where = "an embedded Ray cannot start" if address is None else f"no Ray cluster answers at {address}"
        raise ClusterError(f"{where}: {error}; `ray-distill doctor` looks for the reason") from error


def _patiently(start: Callable[[], Any]) -> None:
    """Start Ray, and once more if it gave itself up: a busy machine may need more than the half minute it has."""
    try:
        start()
    except Exception as error:  # a bare one, told by its text alone
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
    **named: Any,
) -> T:
    """Run ``function`` as one Ray task and return its result.

    Args:
        function: importable; what it gets and returns crosses the cluster.
        arguments: its arguments.
        cpus: CPUs reserved.
        gpus: GPUs reserved.
        what: what is being done, for the message when it fails.
        options: further options of the task.
        named: its keyword arguments.

    Raises:
        DistillError: the one the function raised, or ClusterError if the task itself was lost.
    """
    require_resources(cpus=cpus, gpus=gpus, what=what)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2, **(options or {}))(function)
    try:
        result: T = ray.get(task.remote(*arguments, **named))
    except RayError as error:
        raise explain(error, what) from error
    return result


def require_resources(*, cpus: float, gpus: float, what: str) -> None:
    """Refuse to wait for ever for what no node of the cluster has; errors as `require_bundles`."""
    require_bundles([{"CPU": cpus, "GPU": gpus}], what)


def require_bundles(bundles: Sequence[Mapping[str, float]], what: str) -> None:
    """Make sure that each bundle fits some node of the cluster, and that all of them fit the cluster together.

    What an autoscaler could add cannot be known, so a cluster that is too small is asked to grow and given
    `SCALE_SECONDS` for it; an embedded Ray is refused at once.

    Args:
        bundles: resources by Ray's names, ``{"CPU": 4, "GPU": 1}``; each is held on one node.
        what: what needs them, for the message.

    Raises:
        ClusterError: says what is asked and what there is.
    """
    wanted = [{name: amount for name, amount in bundle.items() if amount > 0} for bundle in bundles]
    if _fits(wanted, _nodes()) or (not _embedded.is_set() and _grown(wanted, what)):
        return
    best = ", ".join(_text({"CPU": 0, "GPU": 0, **node}) for node in _nodes())
    raise ClusterError(
        f"{what} needs {_several(bundles)}; the nodes have {best or 'none'}: change the resources in "
        "the config, or the cluster"
    )


def capacity(name: str) -> float:
    """How much of a resource (``CPU``, ``GPU``) the nodes that are alive have together."""
    return sum(node.get(name, 0.0) for node in _nodes())


def _nodes() -> list[dict[str, float]]:
    """Resources of every node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fits(bundles: Sequence[Mapping[str, float]], nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether each bundle fits a node, and their sum all nodes together."""
    each = all(
        any(all(node.get(name, 0) >= amount for name, amount in bundle.items()) for node in nodes) for bundle in bundles
    )
    names = {name for bundle in bundles for name in bundle}
    return each and all(
        sum(bundle.get(name, 0) for bundle in bundles) <= sum(node.get(name, 0) for node in nodes) for name in names
    )


def _grown(bundles: Sequence[Mapping[str, float]], what: str) -> bool:
    """Ask the autoscaler for room and wait for it; the request is withdrawn, for it would outlive the job."""
    say(
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
    """Tell the autoscaler, from inside the cluster: a client at ray:// cannot."""
    ask = ray.remote(num_cpus=0)(request_resources)
    try:
        ray.get(ask.remote(bundles=[dict(bundle) for bundle in bundles]))
    except RayError as error:
        raise explain(error, "asking the cluster to grow") from error


def _several(bundles: Sequence[Mapping[str, float]]) -> str:
    """Bundles in words: equal ones are counted."""
    counts: dict[str, int] = {}
    for bundle in bundles:
        counts[_text(bundle)] = counts.get(_text(bundle), 0) + 1
    return " + ".join(f"{'' if count == 1 else f'{count} × '}{text} on one node" for text, count in counts.items())


def _text(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if name in resources)


def explain(error: BaseException, what: str) -> DistillError:
    """Find the error of ours inside what Ray raised; else say in one line what failed and why."""
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
