"""Ray job: freeze the configured source into a snapshot; the last line is its SnapshotRef."""

import sys

from ray_distill.runtime import campaign, entrypoint


def main() -> int:
    """Parse, freeze, print the reference."""
    options = entrypoint.parse(__doc__)
    return entrypoint.run(options, campaign.snapshot)


if __name__ == "__main__":
    sys.exit(main())
