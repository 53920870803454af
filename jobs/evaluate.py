"""Ray job: judge the student beside its teacher and baselines on the test split; the last line is the EvalReport."""

import sys

from ray_distill.config import Campaign
from ray_distill.runtime import campaign, entrypoint, references


def main() -> int:
    """Parse, measure, print the report."""
    options = entrypoint.parse(
        __doc__, {"students": "students by arm, as printed by `train` (or a file); default: the campaign's latest"})

    def stage(config: Campaign) -> object:
        return campaign.evaluate(config, references.students(config, options.students))

    return entrypoint.run(options, stage)


if __name__ == "__main__":
    sys.exit(main())
