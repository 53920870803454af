"""Take a campaign's snapshots, all with the same input column, seed and conversation format."""

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign, SnapshotConfig
from ray_distill.snapshots.take import take_snapshot
from ray_distill.storage import files
from ray_distill.tasks.catalogue import get_task


def freeze(config: Campaign, sources: SnapshotConfig | None = None) -> SnapshotRef:
    """Freeze the campaign's sources, or other sources, into the folder of its snapshots.

    A snapshot that exists already is left unchanged.

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
