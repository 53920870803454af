"""Let the teacher continue the prompts of a snapshot, as a Ray job.

On stdout, the last line is the SnapshotRef of the new snapshot.
"""

import sys

from ray_distill.cli import main

sys.exit(main(["write", *sys.argv[1:], "--address", "auto", "--json"]))
