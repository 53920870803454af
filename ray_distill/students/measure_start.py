"""Measure once what a student keeps of its teacher, and store it beside the students.

<output>/measured/<key>.json    by the fingerprints of everything that decides the result
"""

from typing import ClassVar

import numpy as np

from ray_distill.artifacts import Document
from ray_distill.config import Campaign, TeacherConfig
from ray_distill.errors import DistillError, TrainingError
from ray_distill.fingerprint import fingerprint
from ray_distill.models.io.load import load_processor
from ray_distill.models.students.measured import Measured
from ray_distill.models.students.vocabulary import Counts, count_tokens
from ray_distill.snapshots.reader import Snapshot
from ray_distill.storage import files
from ray_distill.storage.sealed import read_document, write_sealed
from ray_distill.students.process_group import Ranks
from ray_distill.tasks.catalogue import get_task

_MEASURE_AGAIN = "delete it, and it is measured again"


class TokenCounts(Document):
    """How often each token of a tokenizer comes in the train texts of a snapshot."""

    refusal: ClassVar[type[DistillError]] = TrainingError

    processor: str
    """Fingerprints of the processor and of the snapshot."""
    snapshot: str
    counts: tuple[int, ...]
    """By token id; a text counts as often as it came."""


def measure_start(config: Campaign, snapshot: Snapshot, output: str, ranks: Ranks) -> Measured:
    """Return the measurements that the student's settings need; equal on all ranks.

    Args:
        config: the campaign.
        snapshot: the campaign's own.
        output: folder of the students.
        ranks: the process group, which shares the work.

    Raises:
        ConfigError: the settings do not suit the teacher.
        TrainingError, DamagedFile: a stored measurement cannot be read.
        SnapshotError, StorageError: the rows cannot be read.
    """
    counts = None if config.student.model.kept_tokens is None else _token_counts(config, snapshot, output, ranks)
    return Measured(counts=counts)


def count_some(config: Campaign, snapshot: Snapshot, *, rows: int) -> Measured:
    """Return the measurements of the first shards alone, for a forecast; nothing is stored.

    Args:
        config: the campaign.
        snapshot: the campaign's own.
        rows: shards are read until there are so many rows.
    """
    if config.student.model.kept_tokens is None:
        return Measured()
    shards, found = [shard for shard in snapshot.shards if shard.split == "train"], 0
    read = []
    for shard in shards:
        if found < rows:
            read.append(shard)
            found += shard.rows
    processor = load_processor(_reader(config), task=config.task)
    return Measured(counts=count_tokens(snapshot, read, processor, get_task(config.task).inputs))


def _reader(config: Campaign) -> TeacherConfig:
    """Return the teacher as it reads texts of the student's length."""
    length = config.student.model.max_length or config.labels.teacher.max_length
    return config.labels.teacher.model_copy(update={"max_length": length})


def _token_counts(config: Campaign, snapshot: Snapshot, output: str, ranks: Ranks) -> Counts:
    processor = load_processor(_reader(config), task=config.task)
    identity = {"processor": processor.fingerprint, "snapshot": snapshot.ref.fingerprint}
    url = files.join(output, "measured", f"{fingerprint({'tokens': identity})[:16]}.json")
    known: TokenCounts | None = ranks.share(_stored(url) if ranks.first else None)
    if known is not None:
        return np.array(known.counts, np.int64)
    shards = [shard for shard in snapshot.shards if shard.split == "train"]
    own = count_tokens(snapshot, shards[ranks.rank :: ranks.world], processor, get_task(config.task).inputs)
    counts: Counts = np.sum(ranks.gather(own), axis=0)
    if ranks.first:
        write_sealed(url, TokenCounts(**identity, counts=tuple(counts.tolist())).to_dict())
    return counts


def _stored(url: str) -> TokenCounts | None:
    return read_document(TokenCounts, url, _MEASURE_AGAIN) if files.exists(url) else None
