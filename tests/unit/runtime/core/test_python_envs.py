"""Where the teacher lives, decided without Ray; and an environment that cannot hold one is told before it is used."""

import sys
from pathlib import Path

import pytest
import ray

from ray_distill.config import TeacherConfig
from ray_distill.errors import ClusterError, TeacherRefused
from ray_distill.runtime.core import python_envs
from ray_distill.runtime.core.python_envs import check_python, environment, once, require_same_tokens

VLLM = TeacherConfig(model="m", engine="vllm", vllm={"python": "/opt/vllm/bin/python"})


def test_only_vllm_has_an_environment_of_its_own() -> None:
    """And it too may live beside everything else; a task's process ends with it, for the engine keeps its memory."""
    assert environment(TeacherConfig(model="m", vllm={"python": "/opt/vllm/bin/python"})) == {}
    assert environment(TeacherConfig(model="m", engine="vllm")) == {}
    assert environment(VLLM) == {"runtime_env": {"py_executable": "/opt/vllm/bin/python"}}
    assert once(VLLM) == {**environment(VLLM), "max_calls": 1}
    assert once(TeacherConfig(model="m")) == {}


def _python(folder: Path, said: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\necho '{said}'\n")
    path.chmod(0o755)
    return str(path)


def test_an_environment_that_fits_passes(tmp_path: Path) -> None:
    """The same Python and Ray, vLLM, and this package."""
    version = ".".join(map(str, sys.version_info[:2]))
    check_python(
        _python(tmp_path, f'{{"python": "{version}", "ray": "{ray.__version__}", "vllm": true, "ray_distill": true}}')
    )


def test_everything_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    """With what was found and what is expected."""
    with pytest.raises(ClusterError) as refused:
        check_python(_python(tmp_path, '{"python": "3.1", "ray": "2.0", "vllm": false, "ray_distill": true}'))
    told = str(refused.value)
    assert "python 3.1, expected 3." in told and f"ray 2.0, expected {ray.__version__}" in told
    assert "vllm missing, expected there" in told and "ray_distill missing" not in told


def test_a_real_interpreter_answers() -> None:
    """This one has everything but vLLM."""
    with pytest.raises(ClusterError, match=r"this Ray: vllm missing, expected there: create it from"):
        check_python(sys.executable)


def test_a_path_that_leads_nowhere_is_one_clear_error(tmp_path: Path) -> None:
    """Ray would try to start workers with it for ever."""
    for python in (str(tmp_path / "none"), _python(tmp_path, "not what was asked")):
        with pytest.raises(ClusterError, match="is not a Python that runs on this node"):
            check_python(python)


def test_other_tokens_there_than_here_are_refused() -> None:
    """Before anything is labelled: students would be refused afterwards."""
    require_same_tokens("a", "a", VLLM)
    with pytest.raises(TeacherRefused, match="fingerprint b in that of /opt/vllm/bin/python, a in this one"):
        require_same_tokens("a", "b", VLLM)


def test_nothing_is_looked_at_where_there_is_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other engines pay nothing."""
    monkeypatch.setattr(python_envs, "on_cluster", None)
    python_envs.require_environment(TeacherConfig(model="m"))
