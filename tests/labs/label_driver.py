"""A driver for `tests.labs.label_kills`: labels one store after the other in one process, as the `label` command does.

Several in one process, because Ray's workers belong to a driver: those of the next store need not start again. Each
line of stdin is the command's arguments as JSON; each is answered by a line of stdout, ``done <exit status>``.
"""

import json
import sys
from collections.abc import Iterable

from ray_distill import cli
from ray_distill.runtime.core import connection


def main(address: str, lines: Iterable[str]) -> None:
    """Run commands on the cluster at ``address`` until stdin ends."""
    with connection.connected(address):
        for line in lines:
            status = cli.main(json.loads(line))
            sys.stdout.write(f"\ndone {status}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin)
