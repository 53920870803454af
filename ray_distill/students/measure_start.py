"""Measure once what a student keeps of its teacher, and store it beside the students.

<output>/measured/<key>.json    by the fingerprints of everything that decides the result
"""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from ray_distill.artifacts import Document
from ray_distill.config import Campaign, TeacherConfig
from ray_distill.errors import DistillError, TrainingError
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.model.manifest import TeacherIdentity
from ray_distill.models.io.load import load_processor
from ray_distill.models.io.trained import load_labelling_teacher
from ray_distill.models.students.calibration_rows import calibration_batches
from ray_distill.models.students.importance import LayerChoice, choose_layers, config_of, rows_of
from ray_distill.models.students.layer_copy import depth_of, evenly_spaced
from ray_distill.models.students.measured import Measured
from ray_distill.models.students.vocabulary import Counts, count_tokens
from ray_distill.models.students.width import ROWS as WIDTH_ROWS
from ray_distill.models.students.width import WidthScores, measure_width
from ray_distill.snapshots.reader import Snapshot
from ray_distill.storage import files
from ray_distill.storage.sealed import read_document, write_sealed
from ray_distill.students.process_group import Ranks
from ray_distill.tasks.catalogue import get_task

D = TypeVar("D", bound=Document)

_MEASURE_AGAIN = "delete it, and it is measured again"


class TokenCounts(Document):
    """How often each token of a tokenizer comes in the train texts of a snapshot."""

    refusal: ClassVar[type[DistillError]] = TrainingError

    processor: str
    """Fingerprints of the processor and of the snapshot."""
    snapshot: str
    counts: tuple[int, ...]
    """By token id; a text counts as often as it came."""


class KeptLayers(Document):
    """The layers of a teacher that are kept by their importance."""

    refusal: ClassVar[type[DistillError]] = TrainingError

    teacher: str
    """Fingerprints of the teacher and of the snapshot."""
    snapshot: str
    keep: int
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    kl: tuple[float, ...]
    """KL divergence from the whole teacher after each removal, in nats."""


class Activations(Document):
    """Mean sizes of the activations of a teacher."""

    refusal: ClassVar[type[DistillError]] = TrainingError

    teacher: str
    """Fingerprints of the teacher and of the snapshot."""
    snapshot: str
    channels: tuple[float, ...]
    heads: tuple[tuple[float, ...], ...]
    """By layer; likewise the neurons."""
    neurons: tuple[tuple[float, ...], ...]


def measure_start(
    config: Campaign, snapshot: Snapshot, teacher: TeacherIdentity, *, output: str, ranks: Ranks
) -> Measured:
    """Return the measurements that the student's settings need; equal on all ranks.

    Args:
        config: the campaign.
        snapshot: the campaign's own.
        teacher: the teacher of its labels.
        output: folder of the students.
        ranks: the process group. All ranks count tokens; the first one runs the teacher.

    Raises:
        ConfigError: the settings do not suit the teacher.
        TrainingError, DamagedFile: a stored measurement cannot be read.
        ChangedModel, ModelError: the teacher is run, and it is not the one that labelled.
        SnapshotError, StorageError: the rows cannot be read.
    """
    model, folder = config.student.model, files.join(output, "measured")
    counts = None if model.kept_tokens is None else _token_counts(config, snapshot, folder, ranks)
    layers = (
        _kept_layers(config, snapshot, teacher, folder=folder, ranks=ranks) if model.layers == "importance" else None
    )
    width = _width(config, snapshot, teacher, folder=folder, ranks=ranks) if model.source == "teacher_width" else None
    return Measured(counts=counts, layers=layers, width=width)


def count_some(config: Campaign, snapshot: Snapshot, *, rows: int) -> Measured:
    """Return the token counts of the first shards alone, for a forecast; nothing is stored.

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


def _token_counts(config: Campaign, snapshot: Snapshot, folder: str, ranks: Ranks) -> Counts:
    processor = load_processor(_reader(config), task=config.task)
    identity = {"processor": processor.fingerprint, "snapshot": snapshot.ref.fingerprint}
    known = _stored(TokenCounts, folder, identity, ranks)
    if known is not None:
        return np.array(known.counts, np.int64)
    shards = [shard for shard in snapshot.shards if shard.split == "train"]
    own = count_tokens(snapshot, shards[ranks.rank :: ranks.world], processor, get_task(config.task).inputs)
    counts: Counts = np.sum(ranks.gather(own), axis=0)
    if ranks.first:
        _store(folder, identity, TokenCounts(**identity, counts=tuple(counts.tolist())))
    return counts


def _kept_layers(
    config: Campaign, snapshot: Snapshot, teacher: TeacherIdentity, *, folder: str, ranks: Ranks
) -> LayerChoice:
    keep = config.student.model.keep
    assert keep is not None
    identity = {"teacher": teacher.fingerprint, "snapshot": snapshot.ref.fingerprint, "keep": keep}
    known = _stored(KeptLayers, folder, identity, ranks)
    if known is None and ranks.first:
        choice = _measure_layers(config, snapshot, teacher, keep)
        known = KeptLayers.model_validate({**identity, **vars(choice)})
        _store(folder, identity, known)
    known = ranks.share(known)
    assert known is not None
    return LayerChoice(kept=known.kept, removed=known.removed, kl=known.kl)


def _measure_layers(config: Campaign, snapshot: Snapshot, identity: TeacherIdentity, keep: int) -> LayerChoice:
    teacher, task = load_labelling_teacher(config.labels.teacher, identity, task=config.task), get_task(config.task)
    depth = depth_of(config_of(teacher.module), teacher.url)
    evenly_spaced(keep, depth)  # refuses more than there are
    batches = calibration_batches(snapshot, teacher, rows=rows_of(depth, keep))
    return choose_layers(teacher.module, batches, depth=depth, keep=keep, family=task.answers.model.FAMILY)


def _width(config: Campaign, snapshot: Snapshot, teacher: TeacherIdentity, *, folder: str, ranks: Ranks) -> WidthScores:
    identity = {"teacher": teacher.fingerprint, "snapshot": snapshot.ref.fingerprint}
    known = _stored(Activations, folder, identity, ranks)
    if known is None and ranks.first:
        model = load_labelling_teacher(config.labels.teacher, teacher, task=config.task)
        batches = calibration_batches(snapshot, model, rows=WIDTH_ROWS)
        scores = measure_width(model.module, config_of(model.module), batches, model.url)
        known = Activations.model_validate({**identity, **vars(scores)})
        _store(folder, identity, known)
    known = ranks.share(known)
    assert known is not None
    return WidthScores(channels=known.channels, heads=known.heads, neurons=known.neurons)


def _stored(kind: type[D], folder: str, identity: Mapping[str, Any], ranks: Ranks) -> D | None:
    """Return the stored measurement of this identity on every rank; None without one."""
    url = _url(folder, identity)
    found: D | None = ranks.share(
        read_document(kind, url, _MEASURE_AGAIN) if ranks.first and files.exists(url) else None
    )
    return found


def _store(folder: str, identity: Mapping[str, Any], found: Document) -> None:
    write_sealed(_url(folder, identity), found.to_dict())


def _url(folder: str, identity: Mapping[str, Any]) -> str:
    return files.join(folder, f"{fingerprint(dict(identity))[:16]}.json")
