"""Ray job: judge the student beside its teacher and baselines on the test split; the last line is the EvalReport."""

import sys

from ray_distill.cli import main

sys.exit(main(["evaluate", *sys.argv[1:], "--address", "auto", "--json"]))
