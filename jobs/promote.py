"""Ray job: decide on a student from its report; the last line is the Decision."""

import sys

from ray_distill.artifacts import EvalReport
from ray_distill.config import Campaign
from ray_distill.runtime import campaign, entrypoint


def main() -> int:
    """Parse, decide, record, print the decision."""
    options = entrypoint.parse(__doc__, {"report": "what the evaluate job printed, or a file or URL that holds it"})

    def stage(config: Campaign) -> object:
        return campaign.promote(config, entrypoint.read(EvalReport, options.report))

    return entrypoint.run(options, stage)


if __name__ == "__main__":
    sys.exit(main())
