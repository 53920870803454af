"""Ray job: judge the student beside its teacher and baselines on the test split; the last line is the EvalReport."""

import sys

from ray_distill.config import Campaign
from ray_distill.runtime import campaign, entrypoint


def main() -> int:
    """Parse, measure, print the report."""
    options = entrypoint.parse(__doc__, {"students": "what the train job printed, or a file or URL that holds it"})

    def stage(config: Campaign) -> object:
        return campaign.evaluate(config, entrypoint.read_students(options.students))

    return entrypoint.run(options, stage)


if __name__ == "__main__":
    sys.exit(main())
