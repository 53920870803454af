"""Where the teacher lives: vLLM has a Python environment of its own, in which every task and actor runs that asks it.

All who ask the teacher go through `environment`; nothing else knows that there is more than one environment.
"""

import json
import subprocess
import sys
from typing import Any

import ray

from ray_distill.config import TeacherConfig
from ray_distill.errors import ClusterError, TeacherRefused
from ray_distill.runtime.core.connection import on_cluster

#: Seconds in which an interpreter must say what it holds.
LOOK_SECONDS = 120.0

#: Run by the other interpreter, which may lack anything.
_LOOK = """
import importlib.metadata, importlib.util, json, sys
found = {"python": ".".join(map(str, sys.version_info[:2]))}
for name in ("ray", "vllm", "ray_distill"):
    found[name] = importlib.util.find_spec(name) is not None
if found["ray"]:
    found["ray"] = importlib.metadata.version("ray")
print(json.dumps(found))
"""


def environment(teacher: TeacherConfig) -> dict[str, Any]:
    """Options of a Ray task or actor that asks the teacher; none where it lives beside everything else."""
    if teacher.engine != "vllm" or teacher.vllm.python is None:
        return {}
    return {"runtime_env": {"py_executable": teacher.vllm.python}}


def once(teacher: TeacherConfig) -> dict[str, Any]:
    """`environment` of a task, whose process ends with it: an engine holds its memory for as long as that lives."""
    return {**environment(teacher), "max_calls": 1} if teacher.engine == "vllm" else {}


def require_environment(teacher: TeacherConfig) -> None:
    """Look into the teacher's environment on one node: Ray starts a worker that cannot begin again and again.

    Raises:
        ClusterError: there is no such interpreter, or it lacks what a worker needs; says what and how to mend it.
    """
    if environment(teacher):
        on_cluster(look, teacher.vllm.python, what="looking into vLLM's environment")


def look(python: str) -> None:
    """Ask an interpreter of this node what it holds; errors as `require_environment`."""
    mend = "make it as cluster/vllm-requirements.txt says, on every node that labels"
    try:
        done = subprocess.run([python, "-c", _LOOK], capture_output=True, text=True, timeout=LOOK_SECONDS, check=True)
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ClusterError(
            f"labels.teacher.vllm.python: {python} is no Python that runs on this node ({error}): {mend}"
        ) from error
    wanted = {
        "python": ".".join(map(str, sys.version_info[:2])),
        "ray": ray.__version__,
        "vllm": True,
        "ray_distill": True,
    }
    wrong = [
        f"{name} {_told(found[name])}, expected {_told(value)}"
        for name, value in wanted.items()
        if found[name] != value
    ]
    if wrong:
        raise ClusterError(
            f"labels.teacher.vllm.python: the environment of {python} cannot hold a worker of this Ray: "
            f"{'; '.join(wrong)}: {mend}"
        )


def require_same_tokens(here: str | None, there: str | None, teacher: TeacherConfig) -> None:
    """Refuse an environment in which texts are read as other tokens than students will be trained on.

    Raises:
        TeacherRefused: says so.
    """
    if here != there:
        raise TeacherRefused(
            f"the tokenizer of {teacher.model} differs between the two environments: fingerprint {there} in that of "
            f"{teacher.vllm.python}, {here} in this one; install the same version of tokenizers in both, and versions "
            "of transformers that read it alike"
        )


def _told(value: Any) -> str:
    return ("there" if value else "missing") if isinstance(value, bool) else str(value)
