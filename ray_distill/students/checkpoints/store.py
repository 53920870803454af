"""Store and find checkpoints; only complete, verified checkpoints are used.

Layout below a trial's folder: ``checkpoints/<step>-<attempt>/rank-<r>/…`` and, written last, by the first rank
alone, ``marker.json`` with the digest of every file. A folder without a marker is the leftover of a crash.
`async_writer` writes checkpoints during training.
"""

import json
import logging
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any, ClassVar, TypeVar

from ray_distill.artifacts import Document
from ray_distill.config import CheckpointPolicy
from ray_distill.errors import DistillError, StorageError, TrainingError
from ray_distill.fingerprint import sha256
from ray_distill.storage import files
from ray_distill.storage.scratch import Scratch
from ray_distill.storage.sealed import sealed, unsealed
from ray_distill.students.process_group import Ranks

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Version of the marker and of the ranks' files.
FORMAT = 2
_MARKER = "marker.json"
_WITHOUT = "delete the folder of this checkpoint to resume from the one before"


class Marker(Document):
    """The content of ``marker.json``, which completes a checkpoint."""

    refusal: ClassVar[type[DistillError]] = TrainingError

    format: int = FORMAT
    step: int
    plan: dict[str, Any]
    """The plan that a run must have to resume from this checkpoint."""
    state: dict[str, Any]
    """State of the loop as plain JSON: cursor, best result so far, and the result of the last validation."""
    digests: dict[str, str]
    """``rank-<r>/<file>`` to ``sha256:…``."""


class Checkpoint(Marker):
    """A complete checkpoint: the content of its marker, and its address."""

    url: str


def find_checkpoint(folder_url: str, ranks: Ranks) -> Checkpoint | None:
    """Return the newest checkpoint whose files all match their digests; None = there is none.

    The result is the same on every rank; each rank reads its share of the files. A damaged checkpoint is skipped with a
    warning that names it.

    Raises:
        TrainingError: there are complete checkpoints but every one of them is damaged.
    """
    damaged = []
    for url in ranks.share(_complete(folder_url) if ranks.first else []):
        checkpoint, error = ranks.share(_attempted(partial(_read_marker, url)) if ranks.first else None)
        if checkpoint is not None:
            errors = ranks.gather(_attempted(partial(_verify_share, checkpoint, ranks))[1])
            error = next((one for one in errors if one is not None), None)
            if error is None:
                found: Checkpoint = checkpoint
                return found
        if ranks.first:
            log.warning("checkpoint %s is skipped, the one before is tried: %s", url, error)
        damaged.append(error)
    if damaged:
        raise TrainingError(
            f"no usable checkpoint in {folder_url}: all {len(damaged)} are damaged ({'; '.join(damaged)}); restore "
            "them, or delete that folder to train from the start"
        )
    return None


@contextmanager
def fetched(checkpoint: Checkpoint, ranks: Ranks) -> Iterator[Path]:
    """Download and verify all ranks' files into one local folder; removed on exit; collective.

    The ranks of a machine share the folder: each machine downloads a checkpoint once.

    Raises:
        TrainingError: on every rank, if a file differs from its digest on any machine.
        StorageError: on every rank, if a file cannot be read on any machine.
    """
    machines = ranks.gather(_machine())
    leader = machines.index(machines[ranks.rank])
    with ExitStack() as stack:
        folder, error = None, None
        if leader == ranks.rank:
            folder = stack.enter_context(Scratch("resume")).path
            try:
                _download(checkpoint, folder)
            except (StorageError, TrainingError) as found:
                error = found
            except OSError as found:
                error = StorageError(f"{checkpoint.url} cannot be copied to {folder} to be resumed from: {found}")
        outcomes = ranks.gather((folder, error))
        for _, wrong in outcomes:
            if wrong is not None:
                raise wrong
        yield Path(outcomes[leader][0])
        ranks.barrier()  # no rank reads the folder after this


def _download(checkpoint: Checkpoint, folder: Path) -> None:
    for name, digest in checkpoint.digests.items():
        target = folder / name.split("/", 1)[1]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_verified(checkpoint.url, name, digest))


def _machine() -> tuple[str, int, int]:
    """Return a key that is equal on ranks with the same temporary folder.

    Two containers of one machine may have different temporary folders, so the name of the machine is not enough.
    """
    boot, place = Path("/proc/sys/kernel/random/boot_id"), Path(gettempdir()).stat()
    name = boot.read_text(encoding="ascii") if boot.exists() else socket.gethostname()
    return name, place.st_dev, place.st_ino


def check_plan(saved: Mapping[str, Any], current: Mapping[str, Any], where: str, *, folder: str) -> None:
    """Refuse to resume from files that a run with another plan saved.

    Args:
        saved: the plan of the files.
        current: the plan of this run.
        where: what has the files, for the error.
        folder: the folder without which the run starts anew.

    Raises:
        TrainingError: the plans differ; the first difference is named by its dotted name, with both values.
    """
    found = _difference(saved, json.loads(json.dumps(current)))
    if found is None:
        return
    name, before, now = found
    raise TrainingError(
        f"{where} was made with {name} {before}, this run has {name} {now}: resume with the same value, or delete "
        f"{folder} to train from the start"
    )


def _difference(saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the dotted name and both values of the first difference; None = no difference."""
    for name in {**current, **saved}:
        before, now = saved.get(name, "unrecorded"), current.get(name, "unset")
        if isinstance(before, dict) and isinstance(now, dict):
            if (found := _difference(before, now)) is not None:
                return f"{name}.{found[0]}", *found[1:]
        elif before != now:
            return name, before, now
    return None


def upload(local: Path, url: str, prefix: str) -> dict[str, str]:
    """Upload a rank's files below a checkpoint; return their digests by name.

    Each file is read back and verified.

    Raises:
        StorageError: a file cannot be written or read, or the bytes read back differ from those written.
    """
    digests = {}
    for path in sorted(path for path in local.rglob("*") if path.is_file()):
        name, data = f"{prefix}/{path.relative_to(local).as_posix()}", path.read_bytes()
        files.write_bytes(files.join(url, name), data)
        digests[name] = sha256(data)
        if (found := sha256(files.read_bytes(files.join(url, name)))) != digests[name]:
            raise StorageError(
                f"{url}: {name} is damaged: its digest is {found}, not {digests[name]}; it was just written: the file "
                "system does not store the bytes that it receives"
            )
    return digests


def complete(
    url: str, digests: Mapping[str, str], *, step: int, plan: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    """Write the marker, which completes a checkpoint; all its files must have been uploaded."""
    marker = Marker(step=step, plan=dict(plan), state=dict(state), digests=dict(digests))
    files.create_exclusive(files.join(url, _MARKER), files.json_bytes(sealed(marker.to_dict())))


def prune(folder_url: str, policy: CheckpointPolicy, protect: Collection[str] = (), *, last: int | None = None) -> None:
    """Remove checkpoints that the policy does not keep, and leftovers of crashes.

    Markers are removed first.

    Args:
        folder_url: a trial's folder of checkpoints.
        policy: how many of the newest and of the best checkpoints are kept.
        protect: URLs that are kept in any case: the checkpoint just completed, and the one resumed from.
        last: number of the newest to keep, in place of the policy's.
    """
    complete_urls = _complete(folder_url)
    kept = {*complete_urls[: policy.last if last is None else last], *_best(complete_urls, policy), *protect}
    names = {item.name.split("/")[0] for item in files.list_files(folder_url)}
    for url in sorted({files.join(folder_url, name) for name in names} - kept):
        files.delete(files.join(url, _MARKER))
        files.delete(url)


def _best(urls: list[str], policy: CheckpointPolicy) -> list[str]:
    """Return the best checkpoints by their last validation loss.

    If two are equal, the newer one is first.
    """
    if policy.best == 0:
        return []
    found = []
    for url in urls:
        try:
            validation = _read_marker(url).state.get("validation")
        except (StorageError, TrainingError):
            continue  # a damaged checkpoint is not among the best; `find_checkpoint` reports it
        if validation is not None:
            found.append((float(validation["value"]), url))
    return [url for _, url in sorted(found, key=lambda pair: pair[0])[: policy.best]]


def _complete(folder_url: str) -> list[str]:
    """Return the URLs of complete checkpoints, newest first."""
    listed = files.list_files(folder_url)
    names = {item.name.split("/")[0] for item in listed if item.name.endswith("/" + _MARKER)}
    return [files.join(folder_url, name) for name in sorted(names, key=_step_of, reverse=True)]


def _step_of(name: str) -> tuple[int, str]:
    return int(name.split("-")[0]), name


def _verify_share(checkpoint: Checkpoint, ranks: Ranks) -> None:
    for name in sorted(checkpoint.digests)[ranks.rank :: ranks.world]:
        _verified(checkpoint.url, name, checkpoint.digests[name])


def _attempted(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """Return the result of some work, or its error message, to be sent to the other ranks."""
    try:
        return work(), None
    except (StorageError, TrainingError) as error:
        return None, str(error)


def _read_marker(url: str) -> Checkpoint:
    try:
        marker = json.loads(files.read_bytes(files.join(url, _MARKER)))
    except ValueError as error:
        raise TrainingError(f"{url}: its {_MARKER} cannot be read ({error!r})") from error
    if isinstance(marker, dict) and marker.get("format") != FORMAT:
        raise TrainingError(
            f"{url}: the checkpoint has format {marker.get('format')}, this release reads {FORMAT}; use the "
            f"version that wrote it, or {_WITHOUT}"
        )
    content = unsealed(marker, files.join(url, _MARKER), f"restore it, or {_WITHOUT}")
    return Checkpoint(url=url, **dict(Marker.from_dict(content, f"{url}: its {_MARKER}")))


def _verified(url: str, name: str, digest: str) -> bytes:
    """Return a file's bytes after comparing them with the digest from the marker.

    Raises:
        TrainingError: the digests differ.
    """
    data = files.read_bytes(files.join(url, name))
    if sha256(data) != digest:
        raise TrainingError(
            f"{url}: {name} is damaged: its digest is {sha256(data)}, not {digest}; restore it, or {_WITHOUT}"
        )
    return data
