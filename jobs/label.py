"""Ray job: let the teacher label a snapshot; the last line is the LabelSetRef."""

import sys

from ray_distill.cli import main

sys.exit(main(["label", *sys.argv[1:], "--address", "auto", "--json"]))
