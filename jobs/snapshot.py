"""Ray job: freeze the configured source into a snapshot; the last line is its SnapshotRef."""

import sys

from ray_distill.cli import job_entrypoint
from ray_distill.runtime import campaign


def main() -> int:
    """Parse, freeze, print the reference."""
    options = job_entrypoint.parse(__doc__)
    return job_entrypoint.run(options, campaign.snapshot)


if __name__ == "__main__":
    sys.exit(main())
