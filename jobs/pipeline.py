"""Run a campaign, snapshot to verdict, as a Ray job; the last line is its CampaignResult."""

import sys

from ray_distill.cli import main

sys.exit(main(["run", *sys.argv[1:], "--address", "auto", "--json"]))
