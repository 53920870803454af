"""Freeze the input (stage 1): sources, ids, duplicates, splits, quarantine."""

from ray_distill.snapshots.manifest import Shard, SnapshotManifest
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.snapshots.sources.resolve import describe_sources
from ray_distill.snapshots.splits import SPLITS
from ray_distill.snapshots.take import take_snapshot

__all__ = ["SPLITS", "Shard", "Snapshot", "SnapshotManifest", "describe_sources", "open_snapshot", "take_snapshot"]
