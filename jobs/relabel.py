"""Freeze new traffic, label only its new rows and test for drift, as a Ray job.

On stdout, the last line is the report.
"""

import sys

from ray_distill.cli import main

sys.exit(main(["relabel", *sys.argv[1:], "--address", "auto", "--json"]))
