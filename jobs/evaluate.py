"""Evaluate the student, its teacher and baselines on the test split, as a Ray job.

On stdout, the last line is the EvalReport.
"""

import sys

from ray_distill.cli import main

sys.exit(main(["evaluate", *sys.argv[1:], "--address", "auto", "--json"]))
