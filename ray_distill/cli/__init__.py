"""Parse and run the commands, render results, submit jobs, and check machines.

Only `jobs/` imports this room.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress

__all__ = ["main"]

#: Exit status that a shell reports for Ctrl-C, and what is written then.
INTERRUPTED = 130
STOPPED = "\nstopped: run the same command again to continue"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, also if Ctrl-C comes while its modules are imported; see `parser.main`."""
    try:
        from ray_distill.cli import parser

        return parser.main(argv)
    except KeyboardInterrupt:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(STOPPED + "\n")
        return INTERRUPTED
