"""Train and compare the students of the config's section sweep, as a Ray job.

On stdout, the last line is the SweepResult.
"""

import sys

from ray_distill.cli import main

sys.exit(main(["sweep", *sys.argv[1:], "--address", "auto", "--json"]))
