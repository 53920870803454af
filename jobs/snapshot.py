"""Ray job: freeze the configured source into a snapshot; the last line is its SnapshotRef."""

import sys

from ray_distill.cli import main

sys.exit(main(["snapshot", *sys.argv[1:], "--address", "auto", "--json"]))
