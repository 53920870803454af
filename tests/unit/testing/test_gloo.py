"""The gloo launcher forks its ranks from one server that has imported torch; see also `students/test_process_group`."""

import os
import sys
from pathlib import Path

import pytest
import torch

from ray_distill.testing.gloo import PRELOAD, run_gloo


def origin(name: str) -> tuple[int, list[str], bool, bool, str | None]:
    """Return what a rank was forked from, and what it received."""
    parent = os.getppid()
    threads = [path.read_text().strip() for path in Path(f"/proc/{parent}/task").glob("*/comm")]
    return parent, threads, torch.cuda.is_initialized(), set(PRELOAD) <= set(sys.modules), os.environ.get(name)


def openblas_copies() -> int:
    """Return how many libraries of OpenBLAS this process has mapped: numpy and scipy bring one each."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    return sum("openblas" in Path(name).name for name in mapped)


def test_ranks_come_from_one_server_and_with_the_callers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs fork from the same process, which has imported the modules; a variable set between them arrives."""
    first = run_gloo(origin, 2, "RD_TEST_GLOO")
    monkeypatch.setenv("RD_TEST_GLOO", "later")
    second = run_gloo(origin, 1, "RD_TEST_GLOO")
    assert len({found[0] for found in first + second}) == 1 and first[0][0] != os.getpid()
    assert [found[4] for found in first + second] == [None, None, "later"]
    assert all(found[3] for found in first + second)


def test_nothing_that_forking_breaks_runs_in_the_server() -> None:
    """No CUDA, and no thread but those of the allocators and of OpenBLAS, which are prepared for a fork."""
    _, threads, cuda, _, _ = run_gloo(origin, 1, "RD_TEST_GLOO")[0]
    assert not cuda
    (copies,) = run_gloo(openblas_copies, 1)
    own = 1 + copies * ((os.cpu_count() or 1) - 1)
    assert len([name for name in threads if name != "jemalloc_bg_thd"]) <= own, (threads, copies)
