"""vLLM's own environment for the tests, made once for each list of requirements, outside of the checkout."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "cluster" / "vllm-requirements.txt"


def user_cache() -> Path:
    """The folder of what tests and benchmarks make or download once for a user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ray-distill"


def vllm_python() -> Path:
    """The interpreter of an environment with vLLM for CPUs, as ``cluster/vllm-requirements.txt`` says to make it."""
    python = ".".join(map(str, sys.version_info[:3]))
    name = hashlib.sha256(f"{python}\n{sys.base_prefix}\n{REQUIREMENTS.read_text()}".encode()).hexdigest()[:16]
    folder = user_cache() / f"vllm-{name}"
    if not (folder / "ready").is_file():
        _make(folder)
    return folder / "bin" / "python"


def _make(folder: Path) -> None:
    """Make the environment; one that was not finished is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    subprocess.run([base, "-m", "venv", folder], check=True)
    subprocess.run(
        [
            folder / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-compile",
            "--disable-pip-version-check",
            "--requirement",
            REQUIREMENTS,
        ],
        check=True,
    )
    (folder / "ready").touch()


def wrote(config: Any, prompts: list[list[int]]) -> tuple[list[Any], Any, Any]:
    """What a vLLM teacher writes: after all prompts, after the first alone, and until its fourth token comes."""
    from ray_distill.teachers.engines import open_teacher
    from ray_distill.teachers.vllm_teacher import VllmTeacher, write

    teacher = open_teacher(config, task="causal_lm")
    assert isinstance(teacher, VllmTeacher)
    many = write(teacher, prompts, seeds=range(len(prompts)), most=20, ends=[2])
    (one,) = write(teacher, prompts[:1], seeds=[0], most=20, ends=[2])
    (ended,) = write(teacher, prompts[:1], seeds=[0], most=20, ends=[int(one.tokens[3])])
    return many, one, ended
