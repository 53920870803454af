"""Ray for one command: attach to a cluster, or start an embedded one; and one way to run a function there."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

from ray_distill.errors import ClusterError, DistillError

T = TypeVar("T")


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Have Ray while the block runs: the one already there, the one at ``address``, or an embedded one.

    Raises:
        ClusterError: there is no cluster at ``address``.
    """
    if ray.is_initialized():
        yield
        return
    _start(address)
    try:
        yield
    finally:
        ray.shutdown()


def _start(address: str | None) -> None:
    # Ray Train's controller polls the dashboard's state API, which an embedded Ray does not have (FACTS: Ray Train).
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    # Ray's core prints what it also raises, and warns of its own data actors; what fails reaches us as an exception.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            # One core still needs two slots: the teacher's actor, and the tasks that read and write beside it.
            cores = max(2, os.cpu_count() or 2)
            # "local": without it Ray would join whatever cluster was started on this machine before.
            ray.init(address="local", num_cpus=cores, include_dashboard=False, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "an embedded Ray cannot start" if address is None else f"no Ray cluster answers at {address}"
        raise ClusterError(f"{where}: {error}; `ray-distill doctor` looks for the reason") from error


def on_cluster(
    function: Callable[..., T], *arguments: Any, cpus: float = 1, gpus: float = 0, what: str, **named: Any
) -> T:
    """Run ``function`` as one Ray task and return its result.

    Args:
        function: importable; what it gets and returns crosses the cluster.
        arguments: its arguments.
        cpus: CPUs reserved.
        gpus: GPUs reserved.
        what: what is being done, for the message when it fails.
        named: its keyword arguments.

    Raises:
        DistillError: the one the function raised, or ClusterError if the task itself was lost.
    """
    require_resources(cpus=cpus, gpus=gpus, what=what)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2)(function)
    try:
        result: T = ray.get(task.remote(*arguments, **named))
    except ray.exceptions.RayError as error:
        raise explain(error, what) from error
    return result


def require_resources(*, cpus: float, gpus: float, what: str) -> None:
    """Refuse to wait for ever for what no node of the cluster has.

    Raises:
        ClusterError: says what is asked and what there is.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        return
    best = ", ".join(f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes)
    raise ClusterError(f"{what} needs {cpus:g} CPU and {gpus:g} GPU on one node; the nodes have {best or 'none'}: "
                       "change the resources in the config, or the cluster")


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
