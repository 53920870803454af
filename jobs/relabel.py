"""Ray job: freeze new traffic, label only the rows never seen, test for drift; the last line is the report."""

import sys

from ray_distill.cli import job_entrypoint
from ray_distill.config import Campaign
from ray_distill.runtime import campaign


def main() -> int:
    """Parse, relabel, print the report."""
    options = job_entrypoint.parse(
        __doc__, {"source": "file, folder or glob of the new rows; default: snapshot.source, read again"}
    )

    def stage(config: Campaign) -> object:
        return campaign.relabel(config, options.source)

    return job_entrypoint.run(options, stage)


if __name__ == "__main__":
    sys.exit(main())
