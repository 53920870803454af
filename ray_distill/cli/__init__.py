"""Parse and run the commands, render results, submit jobs, and check machines.

Only `jobs/` imports this room.
"""

from ray_distill.cli.parser import main

__all__ = ["main"]
