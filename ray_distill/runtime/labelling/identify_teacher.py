"""Identify the teacher before it labels, and fit its head if it has none.

`prepare_teacher` runs as one task on a node with the teacher's resources; only plain values leave the task.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
import torch

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign, HiddenConfig, Resources, TeacherConfig
from ray_distill.labels.format.codecs import choose_codec, find_codec
from ray_distill.labels.model.manifest import StoreManifest, TeacherIdentity, parts_of
from ray_distill.labels.model.part_specs import AnswerSpace, DistributionsSpec, VectorsSpec
from ray_distill.models.heads.fit_head import fit_head
from ray_distill.models.io.load import load_processor
from ray_distill.models.text.tokenizer_match import tokens_of
from ray_distill.redact import redact
from ray_distill.snapshots.augment.read_views import without_views
from ray_distill.snapshots.augment.views import PARENT
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.tasks.catalogue import get_task
from ray_distill.teachers.engines import identify, refuse_classes
from ray_distill.teachers.layers import resolve_layers


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """Facts about a teacher that its store records."""

    fingerprint: str
    space: AnswerSpace
    layers: tuple[int, ...]
    """The configured hidden layers, counted from 0."""
    head_url: str | None
    describe: Mapping[str, Any]
    tokens: str | None = None
    """Fingerprint of a language model's tokens, which its students must share; None for other tasks."""


def prepare_teacher(
    config: Campaign,
    snapshot: SnapshotRef,
    head_url: str | None,
    progress: Callable[[str, int, int], None] = lambda activity, done, total: None,
) -> TeacherFacts:
    """Open the teacher and return its facts; fit its head if ``head_url`` is None.

    The head is fitted once, while the store has none yet; ``progress`` receives how far that is.

    Raises:
        TeacherRefused: the teacher's classes are not the snapshot's, or it lacks a requested layer.
        ModelError: the teacher cannot be loaded, or a class has no labelled row to fit the head on.
    """
    if config.labels.teacher.head is not None and head_url is None:
        head_url = _fit(config, snapshot, progress)
    teacher = identify(config.labels.teacher, task=config.task, head_url=head_url)
    family, classes = get_task(config.task).answers.model, open_snapshot(snapshot).classes
    family.check_classes(teacher.space, classes, config.labels.teacher.model)
    refuse_classes(config.labels, teacher.space.size)
    hidden = config.labels.hidden.layers
    return TeacherFacts(
        fingerprint=teacher.fingerprint,
        space=teacher.space,
        head_url=head_url,
        tokens=teacher.tokens,
        layers=resolve_layers(hidden, teacher.states) if hidden else (),
        describe=teacher.describe,
    )


def tokens_here(teacher: TeacherConfig, task: str) -> str:
    """Return the fingerprint of the teacher's tokens as this environment reads them."""
    return tokens_of(load_processor(teacher, task=task))


def _fit(config: Campaign, snapshot: SnapshotRef, progress: Callable[[str, int, int], None]) -> str:
    """Fit the head on the train split's labelled rows, which the teacher then must not teach."""
    task, teacher, opened = get_task(config.task), config.labels.teacher, open_snapshot(snapshot)
    # Views have their parents' labels: a head fitted on them as well would be another teacher for each number of views.
    parent = [PARENT] if opened.manifest.view_counts is not None else []
    rows = without_views(opened.read("train", columns=["row_id", task.inputs.column, "label", *parent]))
    rows = rows.filter(pc.is_valid(rows["label"]))
    encoded = task.inputs.encode(rows, load_processor(teacher, task=config.task))
    with _threads_of_all(config.labels.resources):
        return fit_head(
            teacher,
            encoded,
            task.answers.store.truth(encoded, rows).values,
            classes=opened.classes,
            prepare=task.answers.model.head_fit,
            collate=task.inputs.collate,
            seed=config.seed,
            url=files.join(config.store_url, "heads"),
            batch=config.labels.resources.batch,
            progress=progress,
        )


@contextmanager
def _threads_of_all(resources: Resources) -> Iterator[None]:
    """Compute with the threads of all actors, at most those of this node.

    No actor starts before the head is fitted. A sum may differ in its last bits with the number of threads; a head is
    fitted once, and then kept.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(os.cpu_count() or 1, max(1, int(resources.cpus)) * resources.actors[1]))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_manifest(config: Campaign, facts: TeacherFacts) -> StoreManifest:
    """Return the manifest of the campaign's store, for this teacher and these settings.

    Raises:
        ConfigError: ``k`` exceeds the vocabulary of a language model.
    """
    labels, hidden = config.labels, config.labels.hidden
    teacher = labels.teacher
    return StoreManifest(
        task=config.task,
        teacher=TeacherIdentity(
            fingerprint=facts.fingerprint,
            model=redact(teacher.model),
            revision=teacher.revision,
            dtype=teacher.dtype,
            checkpoint=facts.describe.get("checkpoint"),
            head=facts.head_url,
            tokens=facts.tokens,
            engine=facts.describe.get("engine"),
        ),
        parts=parts_of([_distributions(config, facts.space), *(_vectors(hidden, layer) for layer in facts.layers)]),
        unit_rows=labels.unit_rows,
        unit_bytes=labels.unit_bytes,
        batch=labels.resources.batch,
        threads=max(1, int(labels.resources.cpus)),
    )


def _distributions(config: Campaign, space: AnswerSpace) -> DistributionsSpec:
    signal, family = config.labels.signal, get_task(config.task).answers.model
    headed = signal.estimator in ("topk", "hybrid")
    drawn, codec = signal.drawn, choose_codec(signal, family.FAMILY)
    return DistributionsSpec(
        family=family.FAMILY,
        space=space,
        estimator=signal.estimator,
        k=family.limit_entries(signal.k, space, config.labels.teacher.model) if headed else 0,
        draws=signal.draws if drawn else 0,
        exponent=signal.exponent if drawn else 1.0,
        seed=config.seed if drawn else 0,
        temperatures=signal.temperatures,
        codec=codec,
        options=find_codec(codec).options(signal),
    )


def _vectors(hidden: HiddenConfig, layer: int) -> VectorsSpec:
    return VectorsSpec(
        layer=layer, pool=hidden.pool, dtype=hidden.dtype, rank=hidden.rank or 0, variance=hidden.variance or 0.0
    )
