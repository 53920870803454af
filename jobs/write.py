"""Ray job: let the teacher write behind the prompts of a snapshot; the last line is the SnapshotRef of that."""

import sys

from ray_distill.config import Campaign
from ray_distill.runtime import campaign, entrypoint, references


def main() -> int:
    """Parse, write what is not written yet, print the reference."""
    options = entrypoint.parse(
        __doc__, {"snapshot": "SnapshotRef (JSON or file) of the prompts; default: the campaign's latest"})

    def stage(config: Campaign) -> object:
        return campaign.write(config, references.prompts(config, options.snapshot))

    return entrypoint.run(options, stage)


if __name__ == "__main__":
    sys.exit(main())
