"""Find the memory that this process may take."""

import os
import resource
from pathlib import Path

#: Files with the limit of a container, of both versions of control groups.
CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_limit() -> int:
    """Return the bytes that the machine, the container and the process's own limit allow."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [machine, resource.getrlimit(resource.RLIMIT_AS)[0], *map(_container, CONTAINER)]
    return min(limit for limit in limits if limit > 0)


def _container(name: str) -> int:
    """Return the limit in a file; 0 if there is none."""
    try:
        text = Path(name).read_text(encoding="ascii").strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0
