"""Define the commands, render their results, submit jobs and check a machine. Only `jobs/` imports it."""

from ray_distill.cli.commands import main

__all__ = ["main"]
