"""Ray job: train the student and its baselines from stored labels; the last line holds a StudentRef an arm."""

import sys

from ray_distill.cli import main

sys.exit(main(["train", *sys.argv[1:], "--address", "auto", "--json"]))
