"""Ray job: freeze new traffic, label only the rows never seen, test for drift; the last line is the report."""

import sys

from ray_distill.cli import main

sys.exit(main(["relabel", *sys.argv[1:], "--address", "auto", "--json"]))
