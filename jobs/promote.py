"""Ray job: decide on a student from its report; the last line is the Decision."""

import sys

from ray_distill.cli import job_entrypoint, resolve_references
from ray_distill.config import Campaign
from ray_distill.runtime import campaign


def main() -> int:
    """Parse, decide, record, print the decision."""
    options = job_entrypoint.parse(__doc__, {"report": "EvalReport (JSON or file); default: the campaign's latest"})

    def stage(config: Campaign) -> object:
        return campaign.promote(config, resolve_references.report(config, options.report))

    return job_entrypoint.run(options, stage)


if __name__ == "__main__":
    sys.exit(main())
