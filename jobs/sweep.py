"""Ray job: train and compare the students of the config's section sweep; the last line is the SweepResult."""

import sys

from ray_distill.cli import job_entrypoint
from ray_distill.runtime import campaign


def main() -> int:
    """Parse, train every trial that is not done yet, print the comparison."""
    options = job_entrypoint.parse(__doc__)
    return job_entrypoint.run(options, campaign.sweep)


if __name__ == "__main__":
    sys.exit(main())
