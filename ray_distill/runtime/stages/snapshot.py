"""Take and open a campaign's snapshots, all with the same inputs, kind of labels and seed."""

from collections.abc import Mapping

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign, SnapshotConfig
from ray_distill.errors import SnapshotError
from ray_distill.snapshots.manifest import Truth
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.snapshots.take import take_snapshot
from ray_distill.storage import files
from ray_distill.tasks.catalogue import get_task

_LABELS: Mapping[Truth, str] = {"class": "one class", "classes": "a set of classes", "none": "no label"}


def freeze(config: Campaign, sources: SnapshotConfig | None = None) -> SnapshotRef:
    """Freeze the campaign's sources, or other sources, into the folder of its snapshots.

    A snapshot that exists already is left unchanged.

    Raises:
        SnapshotError, StorageError: as `take_snapshot`.
    """
    task = get_task(config.task)
    return take_snapshot(
        sources or config.snapshot,
        input_column=task.inputs.column,
        seed=config.seed,
        url=files.join(files.absolute(config.output_url), "snapshots"),
        binary=task.inputs.binary,
        verify=task.inputs.verify,
        nested=task.inputs.nested(config),
        truth=task.answers.truth,
    )


def open_for(task: str, snapshot: SnapshotRef) -> Snapshot:
    """Open a snapshot for a task.

    Raises:
        SnapshotError: it was taken for other inputs, or for another kind of labels than the task reads; or as
            `open_snapshot`.
        StorageError: as `open_snapshot`.
    """
    opened, reader = open_snapshot(snapshot), get_task(task)
    if opened.input_column != reader.inputs.column:
        raise SnapshotError(
            f"{snapshot.url}: the snapshot has the inputs {opened.input_column!r}, {task} reads "
            f"{reader.inputs.column!r}: take a snapshot for this task"
        )
    found, expected = opened.manifest.truth, reader.answers.truth
    if expected not in (found, "none"):
        raise SnapshotError(
            f"{snapshot.url}: the snapshot has {_LABELS[found]} a row, {task} reads {_LABELS[expected]} a row: take a "
            "snapshot for this task"
        )
    return opened
