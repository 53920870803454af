"""Checkpoints that are either complete and verified, or not there.

Layout below a trial's folder: ``checkpoints/<step>-<attempt>/rank-<r>/…`` and, written last, by the first rank
alone, ``marker.json`` with the digest of every file. A folder without a marker is a crash's leftover.
"""

import json
import logging
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ray_distill.errors import StorageError, TrainingError
from ray_distill.fingerprint import sha256
from ray_distill.storage import files
from ray_distill.students.ranks import Ranks

log = logging.getLogger(__name__)

#: 1 held DeepSpeed's own files, which are pickles and of one number of ranks.
FORMAT = 2
KEEP = 2
_MARKER = "marker.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint: where it lies, after how many steps, and what its marker says."""

    url: str
    step: int
    plan: Mapping[str, Any]
    """What a run must agree with to go on from here."""
    state: Mapping[str, Any]
    """Plain JSON of the loop: cursor and best result so far."""
    digests: Mapping[str, str]
    """``rank-<r>/<file>`` to ``sha256:…``."""


def save_checkpoint(
    folder_url: str, ranks: Ranks, write: Callable[[Path], None], *, step: int, plan: Mapping[str, Any],
    state: Mapping[str, Any], protect: Collection[str] = (),
) -> str:
    """Write a checkpoint on every rank, complete it with its marker, and remove all but the newest two.

    Args:
        folder_url: the trial's folder of checkpoints.
        ranks: this process among the others.
        write: writes this rank's files into a local folder; called once on every rank.
        step: steps done.
        plan: see `Checkpoint`; so is ``state``.
        protect: URLs of checkpoints that must stay: the one this run was resumed from.

    Returns:
        The checkpoint's URL.

    Raises:
        StorageError: the upload failed.
    """
    attempt = ranks.share(uuid.uuid4().hex[:8])
    url = files.join(folder_url, f"{step:08d}-{attempt}")
    with TemporaryDirectory(prefix="ray-distill-checkpoint-") as local:
        write(Path(local))
        ours = _upload(Path(local), files.join(url, f"rank-{ranks.rank}"), f"rank-{ranks.rank}")
    digests = {name: digest for part in ranks.gather(ours) for name, digest in part.items()}
    if ranks.first:
        marker = {"format": FORMAT, "step": step, "plan": plan, "state": state, "digests": digests}
        files.create_exclusive(files.join(url, _MARKER), json.dumps(marker, indent=1).encode())
        _prune(folder_url, {url, *protect})
    ranks.barrier()
    return url


def find_checkpoint(folder_url: str, ranks: Ranks) -> Checkpoint | None:
    """The newest complete checkpoint whose files all have their digests, the same on every rank; None = there is none.

    A damaged one is skipped with a warning that names it.

    Raises:
        TrainingError: there are complete checkpoints but every one of them is damaged.
    """
    found, damaged = _newest_verified(folder_url) if ranks.first else (None, [])
    found, damaged = ranks.share((found, damaged))
    if found is None and damaged:
        raise TrainingError(
            f"no usable checkpoint in {folder_url}: all {len(damaged)} are damaged ({'; '.join(damaged)}); restore "
            "them, or start anew without resuming")
    newest: Checkpoint | None = found
    return newest


def fetch_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Download all ranks' files into one local folder, verifying each.

    Raises:
        TrainingError: a file differs from its digest.
    """
    for name, digest in checkpoint.digests.items():
        target = folder / name.split("/", 1)[1]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_verified(checkpoint, name, digest))


def check_plan(saved: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
    """Refuse to go on from what another run saved.

    Raises:
        TrainingError: the first difference, with both sides.
    """
    for name, value in asked.items():
        if name in saved and saved[name] == json.loads(json.dumps(value)):
            continue
        raise TrainingError(
            f"{where} was made with {name} {saved.get(name, 'unrecorded')}, this run asks for {name} {value}: resume "
            "with the same, or start anew without resuming")


def _upload(local: Path, url: str, prefix: str) -> dict[str, str]:
    """Upload a folder's files and return their digests by name below the checkpoint."""
    digests = {}
    for path in sorted(path for path in local.rglob("*") if path.is_file()):
        name, data = path.relative_to(local).as_posix(), path.read_bytes()
        files.write_bytes(files.join(url, name), data)
        digests[f"{prefix}/{name}"] = sha256(data)
    return digests


def _complete(folder_url: str) -> list[str]:
    """URLs of complete checkpoints, newest first."""
    listed = files.list_files(folder_url)
    names = {item.name.split("/")[0] for item in listed if item.name.endswith("/" + _MARKER)}
    return [files.join(folder_url, name) for name in sorted(names, key=_step_of, reverse=True)]


def _step_of(name: str) -> tuple[int, str]:
    return int(name.split("-")[0]), name


def _newest_verified(folder_url: str) -> tuple[Checkpoint | None, list[str]]:
    damaged = []
    for url in _complete(folder_url):
        try:
            checkpoint = _read_marker(url)
            _verify(checkpoint)
        except (StorageError, TrainingError) as error:
            log.warning("checkpoint %s is skipped, the one before is tried: %s", url, error)
            damaged.append(str(error))
            continue
        return checkpoint, damaged
    return None, damaged


def _read_marker(url: str) -> Checkpoint:
    try:
        marker = json.loads(files.read_bytes(files.join(url, _MARKER)))
        if marker["format"] != FORMAT:
            raise TrainingError(f"{url}: format {marker['format']} is not {FORMAT}; it was written by another version")
        return Checkpoint(
            url=url, step=int(marker["step"]), plan=marker["plan"], state=marker["state"], digests=marker["digests"])
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{url}: its {_MARKER} cannot be read ({error!r})") from error


def _verify(checkpoint: Checkpoint) -> None:
    for name, digest in checkpoint.digests.items():
        _verified(checkpoint, name, digest)


def _verified(checkpoint: Checkpoint, name: str, digest: str) -> bytes:
    """A file's bytes, which are what the marker promised."""
    data = files.read_bytes(files.join(checkpoint.url, name))
    if sha256(data) != digest:
        raise TrainingError(f"{checkpoint.url}: {name} is damaged: its digest is {sha256(data)}, not {digest}")
    return data


def _prune(folder_url: str, protect: Collection[str]) -> None:
    """Remove all but the newest complete checkpoints and those protected; the marker goes first."""
    kept = {*_complete(folder_url)[:KEEP], *protect}
    names = {item.name.split("/")[0] for item in files.list_files(folder_url)}
    for url in sorted({files.join(folder_url, name) for name in names} - kept):
        files.delete(files.join(url, _MARKER))
        files.delete(url)
