"""Decide on a student from its report, as a Ray job; the last line is the Decision."""

import sys

from ray_distill.cli import main

sys.exit(main(["promote", *sys.argv[1:], "--address", "auto", "--json"]))
