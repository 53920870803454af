"""Ray job: a whole campaign, from snapshot to verdict; the last line is the CampaignResult."""

import sys

from ray_distill.cli import job_entrypoint
from ray_distill.runtime import campaign


def main() -> int:
    """Parse, run every stage whose result is not there yet, print the result."""
    options = job_entrypoint.parse(__doc__)
    return job_entrypoint.run(options, campaign.run)


if __name__ == "__main__":
    sys.exit(main())
