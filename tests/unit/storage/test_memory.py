"""The memory that a process may take, in a container or without."""

import os
from pathlib import Path

import pytest

from ray_distill.storage import memory

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("written", "found"), [("1048576\n", 1 << 20), ("max\n", MACHINE), ("9223372036854771712\n", MACHINE)]
)
def test_a_container_may_have_less_memory_than_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, found: int
) -> None:
    """Its limit counts where it has one, in the file of either version; an absent file is none."""
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (-1, -1))
    for place in (0, 1):
        names = [str(tmp_path / "absent"), str(tmp_path / "absent")]
        names[place] = str(tmp_path / "limit")
        (tmp_path / "limit").write_text(written, encoding="ascii")
        monkeypatch.setattr(memory, "CONTAINER", tuple(names))
        assert memory.memory_limit() == found


def test_a_limit_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `ulimit -v` sets it."""
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (1 << 20, -1))
    assert memory.memory_limit() == 1 << 20
