"""The manifest of a snapshot: everything about it but the rows."""

import json
from typing import Any, Literal

from ray_distill.artifacts import Artifact
from ray_distill.errors import ConfigError, DamagedFile, SnapshotError
from ray_distill.fingerprint import fingerprint
from ray_distill.storage.sealed import SEAL, unsealed

MANIFEST_NAME = "snapshot.json"
QUARANTINE_NAME = "quarantine.parquet"
VERSION = 2
_DELETE = "delete the folder of the snapshot and take it again"
#: Way out where a file of a snapshot is lost: one that exists is not taken again.
TAKE_AGAIN = f"restore it, or {_DELETE}"

#: Fields that are not part of the fingerprint.
UNCOUNTED = ("labels_read", "quarantine")

#: How the column ``label`` is read: one class a row (int32), a set of classes (list<int32>), or not at all, because the
#: truth follows from the input.
Truth = Literal["class", "classes", "none"]


class Shard(Artifact):
    """One Parquet file of a split: its rows, in the order of their ids."""

    name: str
    """Below the snapshot's folder: ``data/<split>-<nnnnn>.parquet``."""
    split: str
    rows: int
    content: str
    """Fingerprint of the rows, whatever version of Parquet's writer put them into bytes."""
    bytes: int
    digest: str
    """``sha256:…`` of the file."""


class SplitCounts(Artifact):
    """Counts of a split; ``weight`` sums the rows' counts, ``classes`` counts labelled rows.

    A row with a set of classes counts for each of them.
    """

    rows: int
    weight: int
    labelled: int
    classes: dict[str, int]


class RowCounts(Artifact):
    """Counts of source rows by outcome: ``read`` is the sum of the others.

    ``merged`` rows are further copies of a kept row, ``dropped`` ones had contradicting labels under the policy
    ``drop``, ``excluded`` ones are in the sources of ``exclude``, ``overlapping`` ones in the source that a later split
    has of its own.
    """

    read: int
    kept: int
    merged: int
    dropped: int
    excluded: int
    quarantined: int
    overlapping: int = 0


class LabelsRead(Artifact):
    """How one column of labels was read; see `label_reading`.

    Values are shortened, and only the commonest are listed: a wrong column may have private texts.
    """

    section: str
    """Place in the configuration that names the column."""
    values: str
    """``names`` or ``indices``."""
    unlabelled: dict[str, int]
    """Rows by value that means no label, other than null and empty texts."""
    unknown: dict[str, int]
    """Rows by value that is not a class: these rows are in quarantine, or unlabelled by ``label_unknown``."""
    more: int = 0
    """Further values that are not a class."""
    respelt: dict[str, str] = {}
    """Class by value that differs from it in spelling alone."""


class SnapshotManifest(Artifact):
    """A frozen snapshot, described.

    The fingerprint covers content and meaning: not the bytes of the Parquet files, so that another version of
    the writer finds the same snapshot, and not where rows lay in the sources.
    """

    version: int = VERSION
    input_column: str
    columns: dict[str, str]
    """Arrow type by column."""
    truth: Truth
    classes: tuple[str, ...]
    seed: int
    split_by: str
    split_shares: dict[str, float]
    rows: RowCounts
    quarantined: dict[str, int]
    """Rows by reason."""
    conflict_policy: str
    conflicts: int
    """Inputs whose copies had different labels."""
    groups_crossing: int
    """Inputs found in groups of different splits; each is in the earliest of these splits."""
    own: dict[str, int] = {}
    """Splits that have a source of their own, and the rows that were left out elsewhere because of each."""
    splits: dict[str, SplitCounts]
    shards: tuple[Shard, ...]
    quarantine: str = ""
    """``sha256:…`` of the file of rows in quarantine. Not part of the fingerprint, as the shards' digests."""
    labels_read: tuple[LabelsRead, ...] = ()
    """How each column of labels was read. Not part of the fingerprint: spellings differ between formats."""
    derived: dict[str, Any] | None = None
    """Origin of a derived snapshot: its parent's fingerprint, how it was derived, and counts of the rows."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of content and meaning."""
        return _fingerprint(self.to_dict())

    @property
    def view_counts(self) -> dict[str, Any] | None:
        """Counts by `augment.add_views`; None for a snapshot without views."""
        return None if self.derived is None or "augment" not in self.derived else self.derived["counts"]


def _fingerprint(value: dict[str, Any]) -> str:
    """Return the fingerprint of a manifest's JSON, whatever fields its version has."""
    shards = [{key: shard[key] for key in ("name", "split", "rows", "content")} for shard in value["shards"]]
    return fingerprint({**{name: item for name, item in value.items() if name not in UNCOUNTED}, "shards": shards})


def manifest_json(manifest: SnapshotManifest) -> dict[str, Any]:
    """Return a manifest as JSON, with its fingerprint, which reveals damage."""
    return {"fingerprint": manifest.fingerprint, **manifest.to_dict()}


def parse_manifest(data: bytes, url: str) -> SnapshotManifest:
    """Rebuild a manifest from the JSON of what `manifest_json` returned.

    Raises:
        SnapshotError: it is damaged, or of another version.
    """
    try:
        value = json.loads(data)
    except ValueError as error:
        raise SnapshotError(f"{url} is damaged: it is not JSON ({error}); {TAKE_AGAIN}") from error
    version = value.get("version") if isinstance(value, dict) else None
    if isinstance(version, int) and version != VERSION:
        remedy = "upgrade ray-distill" if version > VERSION else f"it is older than 0.2: {TAKE_AGAIN}"
        raise SnapshotError(f"{url} is a snapshot of version {version}, this release reads {VERSION}: {remedy}")
    try:
        content = {name: item for name, item in value.items() if name != SEAL}
        written = content.pop("fingerprint")
        found, manifest = _fingerprint(content), SnapshotManifest.from_dict(content)
    except (ConfigError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise SnapshotError(f"{url} is not a snapshot's manifest ({error!r}): {TAKE_AGAIN}") from error
    if found != written:
        raise SnapshotError(
            f"{url} is damaged: its content has the fingerprint {found}, recorded is {written}; {TAKE_AGAIN}"
        )
    if manifest.fingerprint != written:
        raise SnapshotError(
            f"{url} was written by another version of ray-distill, whose manifest has other fields: use that version, "
            f"or {_DELETE}"
        )
    try:
        unsealed(value, url, TAKE_AGAIN)
    except DamagedFile as error:
        raise SnapshotError(str(error)) from error
    return manifest
