"""Ray job: train the student and its baselines from stored labels; the last line holds a StudentRef an arm."""

import sys

from ray_distill.cli import job_entrypoint, resolve_references
from ray_distill.config import Campaign
from ray_distill.runtime import campaign


def main() -> int:
    """Parse, train (or go on training), print the references."""
    options = job_entrypoint.parse(__doc__, {"labels": "LabelSetRef (JSON or file); default: the campaign's latest"})

    def stage(config: Campaign) -> object:
        return campaign.train(config, resolve_references.labels(config, options.labels))

    return job_entrypoint.run(options, stage)


if __name__ == "__main__":
    sys.exit(main())
