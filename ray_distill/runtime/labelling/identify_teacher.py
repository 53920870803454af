"""The teacher before it labels: fit its head if it has none, and identify it.

It runs as one task on a node with the teacher's resources; only plain values leave it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign, TeacherConfig
from ray_distill.errors import ConfigError, TeacherRefused
from ray_distill.labels.format.codecs import choose_codec, find_codec
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.models.heads.fit_head import fit_head
from ray_distill.models.io.load import load_processor
from ray_distill.models.text.tokenizer_match import tokens_of
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.tasks.catalogue import get_task
from ray_distill.teachers.ask import resolve_layers
from ray_distill.teachers.engines import identify, refuse_classes


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """What a store must know of its teacher."""

    fingerprint: str
    classes: tuple[str, ...]
    layers: tuple[int, ...]
    """The configured hidden layers, counted from 0."""
    head_url: str | None
    describe: Mapping[str, Any]
    vocabulary: int = 0
    """Width of a language model's logits, which has no class names; else 0."""
    tokens: str | None = None
    """Fingerprint of a language model's tokens, which its students must share; None for other tasks."""


def prepare_teacher(config: Campaign, snapshot: SnapshotRef, head_url: str | None) -> TeacherFacts:
    """Open the teacher and say what it is; its head is fitted once, when the store has none yet (``head_url`` None).

    Raises:
        TeacherRefused: its classes are not the snapshot's, or it has not the layers that are asked for.
        ModelError: it cannot be loaded, or a class has no labelled row to fit the head on.
    """
    if config.labels.teacher.head is not None and head_url is None:
        head_url = _fit(config, snapshot)
    teacher = identify(config.labels.teacher, task=config.task, head_url=head_url)
    if not teacher.vocabulary:
        _same_classes(teacher.classes, open_snapshot(snapshot).classes, config.labels.teacher.model)
    refuse_classes(config.labels, teacher.vocabulary)
    hidden = config.labels.hidden.layers
    return TeacherFacts(
        fingerprint=teacher.fingerprint,
        classes=teacher.classes,
        vocabulary=teacher.vocabulary,
        head_url=head_url,
        tokens=teacher.tokens,
        layers=resolve_layers(hidden, teacher.states) if hidden else (),
        describe=teacher.describe,
    )


def tokens_here(teacher: TeacherConfig, task: str) -> str:
    """Fingerprint of the teacher's tokens as this environment reads them."""
    return tokens_of(load_processor(teacher, task=task))


def _fit(config: Campaign, snapshot: SnapshotRef) -> str:
    """Fit the head on the train split's labelled rows; they are then no rows the teacher may teach."""
    task, teacher, opened = get_task(config.task), config.labels.teacher, open_snapshot(snapshot)
    rows = opened.read("train", columns=["row_id", task.inputs.column, "label"])
    rows = rows.filter(pc.is_valid(rows["label"]))
    encoded = task.inputs.encode(rows, load_processor(teacher, task=config.task))
    labels = rows["label"].take(pc.index_in(encoded.row_ids, value_set=rows["row_id"].combine_chunks()))
    return fit_head(
        teacher,
        encoded,
        np.asarray(labels),
        classes=opened.classes,
        collate=task.inputs.collate,
        seed=config.seed,
        url=files.join(config.output_url, "heads"),
        batch=config.labels.resources.batch,
    )


def _same_classes(teacher: tuple[str, ...], snapshot: tuple[str, ...], name: str) -> None:
    ours, theirs = sorted(set(snapshot) - set(teacher)), sorted(set(teacher) - set(snapshot))
    if ours or theirs:
        raise TeacherRefused(
            f"the teacher {name} and the snapshot have different classes: only the teacher has {theirs[:5]}, only the "
            f"snapshot has {ours[:5]}; name them alike in snapshot.classes, or in the teacher's id2label"
        )


def make_manifest(config: Campaign, facts: TeacherFacts) -> StoreManifest:
    """What the campaign's store must be: `StoreManifest` of this teacher and these settings.

    Raises:
        ConfigError: more tokens are to be stored than a language model has.
    """
    labels, hidden, signal = config.labels, config.labels.hidden, config.labels.signal
    if signal.estimator in ("topk", "hybrid") and 0 < facts.vocabulary < signal.k:
        raise ConfigError(
            f"labels.signal.k is {signal.k}, but {labels.teacher.model} has a vocabulary of {facts.vocabulary}: give "
            f"at most {facts.vocabulary}, or take the estimator dense, which stores all of it"
        )
    teacher, drawn = labels.teacher, signal.estimator in ("sampled", "hybrid")
    codec = choose_codec(signal)
    return StoreManifest(
        task=config.task,
        classes=facts.classes,
        vocabulary=facts.vocabulary,
        estimator=labels.signal.estimator,
        teacher={
            "fingerprint": facts.fingerprint,
            "model": teacher.model,
            "revision": teacher.revision,
            "dtype": teacher.dtype,
            "head": facts.head_url,
            **({"tokens": facts.tokens} if facts.tokens else {}),
            **({"engine": facts.describe["engine"]} if "engine" in facts.describe else {}),
        },
        k=min(signal.k, len(facts.classes) or facts.vocabulary) if signal.estimator in ("topk", "hybrid") else 0,
        draws=signal.draws if drawn else 0,
        exponent=signal.exponent if drawn else 1.0,
        seed=config.seed if drawn else 0,
        temperatures=signal.temperatures,
        hidden_layers=facts.layers,
        pool=hidden.pool,
        hidden_dtype=hidden.dtype,
        hidden_rank=(hidden.rank or 0) if facts.layers else 0,
        hidden_variance=(hidden.variance or 0.0) if facts.layers else 0.0,
        codec=codec,
        options=find_codec(codec).options(signal),
        unit_rows=labels.unit_rows,
        unit_bytes=labels.unit_bytes,
        batch=labels.resources.batch,
        threads=max(1, int(labels.resources.cpus)),
    )
