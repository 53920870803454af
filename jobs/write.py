"""Ray job: let the teacher continue the prompts of a snapshot; the last line is the new SnapshotRef."""

import sys

from ray_distill.cli import main

sys.exit(main(["write", *sys.argv[1:], "--address", "auto", "--json"]))
