"""Ray job: run a whole campaign, from snapshot to verdict; the last line is the CampaignResult."""

import sys

from ray_distill.cli import main

sys.exit(main(["run", *sys.argv[1:], "--address", "auto", "--json"]))
