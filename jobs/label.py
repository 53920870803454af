"""Label a snapshot with the teacher, as a Ray job; the last line is the LabelSetRef."""

import sys

from ray_distill.cli import main

sys.exit(main(["label", *sys.argv[1:], "--address", "auto", "--json"]))
