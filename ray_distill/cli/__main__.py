"""Run `ray-distill` as ``python -m ray_distill.cli``."""

import sys

from ray_distill.cli import main

sys.exit(main())
