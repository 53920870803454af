"""Ray job: let the teacher write behind the prompts of a snapshot; the last line is the SnapshotRef of that."""

import sys

from ray_distill.cli import job_entrypoint, resolve_references
from ray_distill.config import Campaign
from ray_distill.runtime import campaign


def main() -> int:
    """Parse, write what is not written yet, print the reference."""
    options = job_entrypoint.parse(
        __doc__, {"snapshot": "SnapshotRef (JSON or file) of the prompts; default: the campaign's latest"}
    )

    def stage(config: Campaign) -> object:
        return campaign.write(config, resolve_references.prompts(config, options.snapshot))

    return job_entrypoint.run(options, stage)


if __name__ == "__main__":
    sys.exit(main())
