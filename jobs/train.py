"""Ray job: train the student and its baselines from stored labels; the last line holds a StudentRef an arm."""

import sys

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import Campaign
from ray_distill.runtime import campaign, entrypoint


def main() -> int:
    """Parse, train (or go on training), print the references."""
    options = entrypoint.parse(__doc__, {"labels": "what the label job printed, or a file or URL that holds it"})

    def stage(config: Campaign) -> object:
        return campaign.train(config, entrypoint.read(LabelSetRef, options.labels))

    return entrypoint.run(options, stage)


if __name__ == "__main__":
    sys.exit(main())
