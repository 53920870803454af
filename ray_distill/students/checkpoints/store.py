"""Checkpoints that are either complete and verified, or not there.

Layout below a trial's folder: ``checkpoints/<step>-<attempt>/rank-<r>/…`` and, written last, by the first rank
alone, ``marker.json`` with the digest of every file. A folder without a marker is a crash's leftover. `saving` writes
them, beside the training.
"""

import json
import logging
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, TypeVar

from ray_distill.config import CheckpointPolicy
from ray_distill.errors import StorageError, TrainingError
from ray_distill.fingerprint import sha256
from ray_distill.storage import files
from ray_distill.students.process_group import Ranks

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Version of the marker and of the ranks' files.
FORMAT = 2
_MARKER = "marker.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint: where it lies, after how many steps, and what its marker says."""

    url: str
    step: int
    plan: Mapping[str, Any]
    """What a run must agree with to go on from here."""
    state: Mapping[str, Any]
    """Plain JSON of the loop: cursor, best result so far, and the last look at the validation split."""
    digests: Mapping[str, str]
    """``rank-<r>/<file>`` to ``sha256:…``."""


def find_checkpoint(folder_url: str, ranks: Ranks) -> Checkpoint | None:
    """The newest complete checkpoint whose files all have their digests, the same on every rank; None = there is none.

    Each rank reads its share of the files. A damaged checkpoint is skipped with a warning that names it.

    Raises:
        TrainingError: there are complete checkpoints but every one of them is damaged.
    """
    damaged = []
    for url in ranks.share(_complete(folder_url) if ranks.first else []):
        checkpoint, error = ranks.share(_attempted(partial(_read_marker, url)) if ranks.first else None)
        if checkpoint is not None:
            told = ranks.gather(_attempted(partial(_verify_share, checkpoint, ranks))[1])
            error = next((one for one in told if one is not None), None)
            if error is None:
                found: Checkpoint = checkpoint
                return found
        if ranks.first:
            log.warning("checkpoint %s is skipped, the one before is tried: %s", url, error)
        damaged.append(error)
    if damaged:
        raise TrainingError(
            f"no usable checkpoint in {folder_url}: all {len(damaged)} are damaged ({'; '.join(damaged)}); restore "
            "them, or start anew without resuming"
        )
    return None


@contextmanager
def fetched(checkpoint: Checkpoint, ranks: Ranks) -> Iterator[Path]:
    """All ranks' files in one local folder, verified, for as long as the context lasts; collective.

    The ranks of a machine share the folder: each machine downloads a checkpoint once.

    Raises:
        TrainingError: on every rank, if a file differs from its digest anywhere.
        StorageError: on every rank, if one cannot be read anywhere.
    """
    machines = ranks.gather(_machine())
    leader = machines.index(machines[ranks.rank])
    with ExitStack() as stack:
        folder, error = None, None
        if leader == ranks.rank:
            folder = stack.enter_context(TemporaryDirectory(prefix="ray-distill-resume-"))
            try:
                _download(checkpoint, Path(folder))
            except (StorageError, TrainingError) as found:
                error = found
            except OSError as found:
                error = StorageError(f"{checkpoint.url} cannot be copied to {folder} to be resumed from: {found}")
        told = ranks.gather((folder, error))
        for _, wrong in told:
            if wrong is not None:
                raise wrong
        yield Path(told[leader][0])
        ranks.barrier()  # nobody reads any more


def _download(checkpoint: Checkpoint, folder: Path) -> None:
    for name, digest in checkpoint.digests.items():
        target = folder / name.split("/", 1)[1]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_verified(checkpoint.url, name, digest))


def _machine() -> tuple[str, int, int]:
    """What ranks that see the same temporary folder have in common: two containers of a machine may not."""
    boot, place = Path("/proc/sys/kernel/random/boot_id"), Path(gettempdir()).stat()
    name = boot.read_text(encoding="ascii") if boot.exists() else socket.gethostname()
    return name, place.st_dev, place.st_ino


def check_plan(saved: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
    """Refuse to go on from what another run saved.

    Raises:
        TrainingError: the first difference, by its dotted name and with both sides.
    """
    found = _difference(saved, json.loads(json.dumps(asked)))
    if found is None:
        return
    name, before, now = found
    raise TrainingError(
        f"{where} was made with {name} {before}, this run asks for {name} {now}: resume with the same, or start anew "
        "without resuming"
    )


def _difference(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the dotted name of the first difference and both values; None = there is no difference."""
    for name in {**asked, **saved}:
        before, now = saved.get(name, "unrecorded"), asked.get(name, "unset")
        if isinstance(before, dict) and isinstance(now, dict):
            if (found := _difference(before, now)) is not None:
                return f"{name}.{found[0]}", *found[1:]
        elif before != now:
            return name, before, now
    return None


def upload(local: Path, url: str, prefix: str) -> dict[str, str]:
    """Upload a rank's files below a checkpoint, read each back, and return their digests by name.

    Raises:
        StorageError: a file cannot be written or read, or comes back as something else.
    """
    digests = {}
    for path in sorted(path for path in local.rglob("*") if path.is_file()):
        name, data = f"{prefix}/{path.relative_to(local).as_posix()}", path.read_bytes()
        files.write_bytes(files.join(url, name), data)
        digests[name] = sha256(data)
        try:
            _verified(url, name, digests[name])
        except TrainingError as error:
            raise StorageError(
                f"{error}; it was just written: the file system does not keep what it is given"
            ) from error
    return digests


def complete(
    url: str, digests: Mapping[str, str], *, step: int, plan: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    """Make a checkpoint of files that are all there: write the marker."""
    marker = {"format": FORMAT, "step": step, "plan": plan, "state": state, "digests": digests}
    files.create_exclusive(files.join(url, _MARKER), json.dumps(marker, indent=1).encode())


def prune(folder_url: str, policy: CheckpointPolicy, protect: Collection[str] = (), *, last: int | None = None) -> None:
    """Remove what the policy does not keep, and leftovers of crashes; markers go first.

    Args:
        folder_url: a trial's folder of checkpoints.
        policy: how many of the newest stay, and of the best.
        protect: URLs that stay whatever the policy says: of the one just completed, and the one resumed from.
        last: instead of the policy's own number of the newest.
    """
    complete_urls = _complete(folder_url)
    kept = {*complete_urls[: policy.last if last is None else last], *_best(complete_urls, policy), *protect}
    names = {item.name.split("/")[0] for item in files.list_files(folder_url)}
    for url in sorted({files.join(folder_url, name) for name in names} - kept):
        files.delete(files.join(url, _MARKER))
        files.delete(url)


def _best(urls: list[str], policy: CheckpointPolicy) -> list[str]:
    """Return the best checkpoints by the validation loss measured last before each; of equal ones the newer."""
    if policy.best == 0:
        return []
    found = []
    for url in urls:
        try:
            validation = _read_marker(url).state.get("validation")
        except (StorageError, TrainingError):
            continue  # a damaged one is not the best of anything; `find_checkpoint` reports it
        if validation is not None:
            found.append((float(validation["value"]), url))
    return [url for _, url in sorted(found, key=lambda pair: pair[0])[: policy.best]]


def _complete(folder_url: str) -> list[str]:
    """URLs of complete checkpoints, newest first."""
    listed = files.list_files(folder_url)
    names = {item.name.split("/")[0] for item in listed if item.name.endswith("/" + _MARKER)}
    return [files.join(folder_url, name) for name in sorted(names, key=_step_of, reverse=True)]


def _step_of(name: str) -> tuple[int, str]:
    return int(name.split("-")[0]), name


def _verify_share(checkpoint: Checkpoint, ranks: Ranks) -> None:
    for name in sorted(checkpoint.digests)[ranks.rank :: ranks.world]:
        _verified(checkpoint.url, name, checkpoint.digests[name])


def _attempted(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """What some work gives, or what was wrong, to be told to the other ranks."""
    try:
        return work(), None
    except (StorageError, TrainingError) as error:
        return None, str(error)


def _read_marker(url: str) -> Checkpoint:
    try:
        marker = json.loads(files.read_bytes(files.join(url, _MARKER)))
        if marker["format"] != FORMAT:
            raise TrainingError(
                f"{url}: it has format {marker['format']}, this release reads {FORMAT}; start anew without resuming"
            )
        return Checkpoint(
            url=url, step=int(marker["step"]), plan=marker["plan"], state=marker["state"], digests=marker["digests"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{url}: its {_MARKER} cannot be read ({error!r})") from error


def _verified(url: str, name: str, digest: str) -> bytes:
    """A file's bytes, which are what the marker promised."""
    data = files.read_bytes(files.join(url, name))
    if sha256(data) != digest:
        raise TrainingError(f"{url}: {name} is damaged: its digest is {sha256(data)}, not {digest}")
    return data
