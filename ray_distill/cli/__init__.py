"""Define the commands, render their results, submit jobs and check a machine. Only `jobs/` imports it."""

from ray_distill.cli.parser import main

__all__ = ["main"]
