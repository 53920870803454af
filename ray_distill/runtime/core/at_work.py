"""Let one command work on a campaign's output, and remove what killed commands left there."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

from ray_distill.config import Campaign
from ray_distill.runtime.core import console
from ray_distill.storage import files, local
from ray_distill.storage.locks import at_work
from ray_distill.storage.scratch import remove_remnants

#: The lock's file, below the output.
LOCK = "state/lock"
#: Prefix of the scratch folder of `plan`, below the output.
SCRATCH = "plan-"
#: Folders below the output in which killed commands leave unfinished files. A label store may be in use elsewhere.
_SWEPT = ("state", "evaluations", "promotion")

_SCRATCH_FOLDER = re.compile(re.escape(SCRATCH) + "[0-9a-f]{32}")


@contextmanager
def working(config: Campaign, command: str = "", *, shared: bool = False) -> Iterator[None]:
    """Work on the output for the block, alone or, with ``shared``, beside others that share.

    Args:
        config: the campaign.
        command: its name, for others; by default the name of this program.
        shared: whether the command may run beside another one like it.

    Raises:
        InUse: another command is at work there.
        StorageError: the output cannot be written.
    """
    output = config.output_url
    with at_work(output, LOCK, command or Path(sys.argv[0]).name or "python", shared=shared) as alone:
        _report_removed(remove_remnants(), gettempdir)
        if alone:
            _report_removed(_remove_unfinished(output), lambda: output)
        yield


def _report_removed(count: int, where: Callable[[], str]) -> None:
    if count:
        console.report(f"removed {count} temporary files and folders that killed commands left in {where()}")


def _remove_unfinished(output: str) -> int:
    """Remove the scratch folders, progress and unfinished files of killed commands; count them."""
    root = Path(files.absolute(output))
    left = [path for path in root.glob(f"{SCRATCH}*") if _SCRATCH_FOLDER.fullmatch(path.name)]
    left += (root / "state" / "progress").glob("*.json")
    left += [path for folder in _SWEPT for path in (root / folder).rglob(".*.part") if local.is_unfinished(path.name)]
    for path in left:
        files.delete(str(path))
    return len(left)
