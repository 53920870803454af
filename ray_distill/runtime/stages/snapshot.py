"""Take a campaign's snapshots: all of them with its task's input column, its seed and its way to read conversations."""

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign, SnapshotConfig
from ray_distill.snapshots.take import take_snapshot
from ray_distill.storage import files
from ray_distill.tasks.catalogue import get_task


def freeze(config: Campaign, sources: SnapshotConfig | None = None) -> SnapshotRef:
    """Freeze the campaign's sources, or others, among its snapshots; one that is there already is left as it is.

    Raises:
        SnapshotError, StorageError: as `take_snapshot`.
    """
    inputs = get_task(config.task).inputs
    return take_snapshot(
        sources or config.snapshot,
        input_column=inputs.column,
        seed=config.seed,
        url=files.join(files.absolute(config.output_url), "snapshots"),
        nested=inputs.nested(config),
    )
