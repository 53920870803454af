"""Train the student and its baselines from stored labels, as a Ray job.

On stdout, the last line is a JSON object with one StudentRef per arm.
"""

import sys

from ray_distill.cli import main

sys.exit(main(["train", *sys.argv[1:], "--address", "auto", "--json"]))
