"""Ray job: a whole campaign, from snapshot to verdict; the last line is the CampaignResult."""

import sys

from ray_distill.runtime import campaign, entrypoint


def main() -> int:
    """Parse, run every stage whose result is not there yet, print the result."""
    options = entrypoint.parse(__doc__)
    return entrypoint.run(options, campaign.run)


if __name__ == "__main__":
    sys.exit(main())
