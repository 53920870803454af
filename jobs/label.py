"""Ray job: let the teacher label a snapshot; the last line is the LabelSetRef."""

import sys

from ray_distill.cli import job_entrypoint, resolve_references
from ray_distill.config import Campaign
from ray_distill.runtime import campaign


def main() -> int:
    """Parse, label what is not labelled yet, print the reference."""
    options = job_entrypoint.parse(__doc__, {"snapshot": "SnapshotRef (JSON or file); default: the campaign's latest"})

    def stage(config: Campaign) -> object:
        return campaign.label(config, resolve_references.snapshot(config, options.snapshot))

    return job_entrypoint.run(options, stage)


if __name__ == "__main__":
    sys.exit(main())
