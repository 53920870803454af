"""Ray job: judge the student beside its teacher and baselines on the test split; the last line is the EvalReport."""

import sys

from ray_distill.cli import job_entrypoint, resolve_references
from ray_distill.config import Campaign
from ray_distill.runtime import campaign


def main() -> int:
    """Parse, measure, print the report."""
    options = job_entrypoint.parse(
        __doc__, {"students": "students by arm, as printed by `train` (or a file); default: the campaign's latest"}
    )

    def stage(config: Campaign) -> object:
        return campaign.evaluate(config, resolve_references.students(config, options.students))

    return job_entrypoint.run(options, stage)


if __name__ == "__main__":
    sys.exit(main())
