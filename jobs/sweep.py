"""Ray job: train and compare the students of the config's section sweep; the last line is the SweepResult."""

import sys

from ray_distill.runtime import campaign, entrypoint


def main() -> int:
    """Parse, train every trial that is not done yet, print the comparison."""
    options = entrypoint.parse(__doc__)
    return entrypoint.run(options, campaign.sweep)


if __name__ == "__main__":
    sys.exit(main())
