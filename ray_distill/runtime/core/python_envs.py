"""Run the tasks and actors of a teacher in the Python environment of its engine.

`environment` is the only place that chooses one.
"""

import json
import subprocess
import sys
import uuid
from typing import Any

import ray

from ray_distill.config import TeacherConfig
from ray_distill.errors import ClusterError, TeacherRefused
from ray_distill.runtime.core.connection import on_cluster
from ray_distill.teachers.engines import engine_of

#: Seconds in which an interpreter must report its packages.
REPORT_SECONDS = 120.0

#: Code that the other interpreter runs, which may lack any package.
_REPORT = """
import importlib.metadata, importlib.util, json, sys
found = {"python": ".".join(map(str, sys.version_info[:2]))}
for name in ("ray", "vllm", "ray_distill"):
    found[name] = importlib.util.find_spec(name) is not None
if found["ray"]:
    found["ray"] = importlib.metadata.version("ray")
print(json.dumps(found))
"""


def environment(teacher: TeacherConfig) -> dict[str, Any]:
    """Return the Ray options of the teacher's environment; empty for the workers' own."""
    python = engine_of(teacher).python(teacher)
    return {} if python is None else {"runtime_env": {"py_executable": python}}


def once(teacher: TeacherConfig) -> dict[str, Any]:
    """Return `environment` and, where only an ended process releases memory, ``max_calls`` 1."""
    return {**environment(teacher), "max_calls": 1} if engine_of(teacher).keeps_memory else {}


def new_process() -> dict[str, Any]:
    """Return the Ray options of a task that needs a process of its own.

    A process that ran another task has imported the packages, and hides how long a stage takes to start.
    """
    return {"runtime_env": {"env_vars": {"RAY_DISTILL_PROCESS": uuid.uuid4().hex}}}


def require_environment(teacher: TeacherConfig) -> None:
    """Validate the teacher's environment on one node.

    Without this check, Ray would restart for ever a worker that cannot start.

    Raises:
        ClusterError: there is no such interpreter, or it lacks a package; the message names the package.
    """
    python = engine_of(teacher).python(teacher)
    if python is not None:
        on_cluster(check_python, python, what="validating the teacher's environment")


def check_python(python: str) -> None:
    """Validate the packages of an interpreter of this node; errors as `require_environment`."""
    mend = "create it from cluster/vllm-requirements.txt, on every node that labels"
    try:
        done = subprocess.run(
            [python, "-c", _REPORT], capture_output=True, text=True, timeout=REPORT_SECONDS, check=True
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ClusterError(
            f"labels.teacher.vllm.python: {python} is not a Python that runs on this node ({error}): {mend}"
        ) from error
    expected = {
        "python": ".".join(map(str, sys.version_info[:2])),
        "ray": ray.__version__,
        "vllm": True,
        "ray_distill": True,
    }
    wrong = [
        f"{name} {_text(found[name])}, expected {_text(value)}"
        for name, value in expected.items()
        if found[name] != value
    ]
    if wrong:
        raise ClusterError(
            f"labels.teacher.vllm.python: the environment of {python} cannot run a worker of this Ray: "
            f"{'; '.join(wrong)}: {mend}"
        )


def require_same_tokens(here: str | None, there: str | None, teacher: TeacherConfig) -> None:
    """Refuse a teacher's environment that tokenizes texts differently from the students'.

    Raises:
        TeacherRefused: the fingerprints differ.
    """
    if here != there:
        raise TeacherRefused(
            f"the tokenizer of {teacher.model} differs between the two environments: fingerprint {there} in that of "
            f"{teacher.vllm.python}, {here} in this one; install the same version of tokenizers in both, and versions "
            "of transformers that load it identically"
        )


def _text(value: Any) -> str:
    return ("there" if value else "missing") if isinstance(value, bool) else str(value)
