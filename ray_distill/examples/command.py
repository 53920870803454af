"""Run `python -m` of an example: make its data in a folder, or report one line of error."""

import sys
from collections.abc import Callable
from pathlib import Path

from ray_distill.errors import DistillError


def make(prepare: Callable[[Path], Path], usage: str) -> int:
    """Call ``prepare`` with the folder of the command line; return the exit status."""
    if len(sys.argv) != 2:
        sys.stderr.write(f"usage: {usage} FOLDER\n")
        return 2
    try:
        sys.stdout.write(f"{prepare(Path(sys.argv[1]))}\n")
    except DistillError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0
