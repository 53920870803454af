"""Freeze the configured source, as a Ray job; the last line is the SnapshotRef."""

import sys

from ray_distill.cli import main

sys.exit(main(["snapshot", *sys.argv[1:], "--address", "auto", "--json"]))
