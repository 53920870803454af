"""Open the snapshots and labels a student learns from: the campaign's own and mixed ones."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import Campaign, TrainingConfig
from ray_distill.errors import ConfigError
from ray_distill.labels.format.parquet_shards import read_row_ids
from ray_distill.labels.model import rowids
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.part_specs import DistributionsSpec
from ray_distill.labels.model.rowids import RowIds
from ray_distill.labels.store.ensemble import AveragedLabels, require_same_classes
from ray_distill.labels.store.reader import open_label_set
from ray_distill.models.core.model import Model
from ray_distill.models.heads.fit_head import fitted_rows
from ray_distill.snapshots.augment.read_views import views_of
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.storage import files
from ray_distill.students.data.answer_format import AnswerFormat, learn_facet
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.data.streaming import Labels, LabelSource, Source
from ray_distill.students.data.view_filter import filter_views
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.task import Task

log = logging.getLogger(__name__)

#: A snapshot and its labels.
Labelled = tuple[Snapshot, LabelSource]


def open_labels(config: Campaign, refs: Sequence[LabelSetRef]) -> list[Labelled]:
    """Open the label sets as the campaign mixes them.

    The result is their mean as one set, or all sets, the campaign's own first.

    Raises:
        StoreMismatch: the sets have different tasks, classes or forms and cannot be mixed in this way.
    """
    mixture = config.student.mixture
    snapshots = [open_snapshot(ref.snapshot) for ref in refs]
    sets = [open_label_set(ref, snapshot) for ref, snapshot in zip(refs, snapshots, strict=True)]
    if mixture is not None and mixture.how == "average":
        fitted = [_fitted_rows(labels.manifest) for labels in sets]
        return [(snapshots[0], AveragedLabels(sets, mixture.weights, fitted))]
    for other in sets[1:]:
        require_same_classes(sets[0].manifest, other.manifest)
        _require_same_form(sets[0].manifest, other.manifest)
    return list(zip(snapshots, sets, strict=True))


def open_sources(
    config: Campaign, labelled: Sequence[Labelled], model: Model, *, layers: Sequence[int], teacher_rows_url: str | None
) -> list[Source]:
    """Return the sources from which the student reads rows with their labels.

    The rows on which the campaign is evaluated come from its own snapshot alone: they are left out of the other
    sources, in whichever split they are there, with their views. Views of rows that a teacher may not teach are not
    taught either, and views on which the teacher is unsure (``snapshot.augment.most_entropy``) are left out.

    Args:
        config: the campaign.
        labelled: snapshots and their labels, the campaign's own first.
        model: the student.
        layers: teacher layers whose states are read.
        teacher_rows_url: Parquet with the ids of rows the campaign's teacher may not teach; the stores of other
            teachers record theirs.

    Raises:
        ConfigError: student and labels do not match.
    """
    snapshot, first = labelled[0][0], labelled[0][1].manifest
    excluded = rowids.empty() if teacher_rows_url is None else _ids_in(teacher_rows_url)
    found = [_open_source(config, labelled[0], model, layers=layers, excluded=excluded, evaluated=rowids.empty())]
    if len(labelled) > 1:
        evaluated = np.sort(
            np.concatenate(
                [
                    rowids.to_numpy(snapshot.read(split, ["row_id"])["row_id"])
                    for split in ("validation", "calibration", "test")
                ]
            )
        )
        for own in labelled[1:]:
            if layers:
                _require_same_states(first, own[1].manifest)
            found.append(
                _open_source(
                    config, own, model, layers=layers, excluded=_fitted_rows(own[1].manifest), evaluated=evaluated
                )
            )
    return found


def example_columns(task: Task, answers: AnswerFormat, training: TrainingConfig) -> tuple[str, ...]:
    """Return the columns of a snapshot from which examples are built.

    The column ``count`` is read only if rows are weighed by it.
    """
    counted = ("count",) if training.weigh_by == "count" else ()
    return ("row_id", task.inputs.column, *answers.truth_columns, *counted)


def _open_source(
    config: Campaign, labelled: Labelled, model: Model, *, layers: Sequence[int], excluded: RowIds, evaluated: RowIds
) -> Source:
    snapshot, labels = labelled
    task, augment = get_task(config.task), config.snapshot.augment
    views = filter_views(snapshot, labels, None if augment is None else augment.most_entropy)
    if len(views.unsure):
        log.info(
            "%d of %d views teach nobody, because the teacher is unsure on them (snapshot.augment.most_entropy)",
            len(views.unsure),
            views.kept + len(views.unsure),
        )
    dropped = _joined(evaluated, views_of(snapshot, evaluated), views.unsure)
    excluded = _joined(excluded, views_of(snapshot, excluded))
    answers = learn_facet(task.answers).answer_format(
        task=task,
        model=model,
        manifest=labels.manifest,
        snapshot_classes=snapshot.classes,
        training=config.student.training,
    )
    return Source(
        snapshot=snapshot,
        labels=labels,
        layers=tuple(layers),
        columns=example_columns(task, answers, config.student.training),
        build=partial(_build, partial(build_examples, answers=answers, processor=model.processor), excluded, dropped),
    )


def _joined(*ids: RowIds) -> RowIds:
    """Return the ids of all arrays, ascending."""
    return np.unique(np.concatenate(ids))


def _build(
    make: Callable[..., PositionExamples],
    excluded: RowIds,
    left_out: RowIds,
    table: pa.Table,
    *,
    labels: Labels,
    name: str,
    part: bool = False,
) -> PositionExamples:
    ids = rowids.to_numpy(table["row_id"])
    dropped = rowids.is_in(ids, left_out)
    if dropped.any():
        table, ids = table.filter(pa.array(~dropped)), ids[~dropped]
    own = rowids.to_arrow(
        ids[rowids.is_in(ids, excluded)]
    )  # few rows of a unit are excluded, and each call hashes them
    return make(table, labels=labels, excluded=own, name=name, part=part)


def _fitted_rows(manifest: StoreManifest) -> RowIds:
    """Return the ids of the rows on which the head of a store's teacher was fitted, ascending."""
    head = manifest.teacher.head
    return rowids.empty() if head is None else np.sort(rowids.to_numpy(fitted_rows(head)))


def _ids_in(url: str) -> RowIds:
    with files.open_input(url) as source:
        return np.sort(read_row_ids(source, url))


def _require_same_form(first: StoreManifest, other: StoreManifest) -> None:
    """Refuse sources whose distributions cannot be in one batch."""
    one, two = first.distributions, other.distributions
    if (one.temperatures, one.draws, one.exponent) != (two.temperatures, two.draws, two.exponent):
        raise ConfigError(
            "student.mixture: label sets that are mixed by source need the same temperatures and draws; found "
            f"{_form(one)}, and {_form(two)} of {other.teacher.name}"
        )


def _form(spec: DistributionsSpec) -> str:
    drawn = f"{spec.draws} draws of p^{spec.exponent:g}" if spec.draws else "no draws"
    drawn = f"{spec.estimator}, k {spec.k}, {drawn}"
    return f"T {', '.join(f'{t:g}' for t in spec.temperatures)} with {drawn}"


def _require_same_states(first: StoreManifest, other: StoreManifest) -> None:
    """Refuse hidden states of several teachers, or on several bases, for one projection."""
    if (first.teacher.fingerprint, first.pool) != (other.teacher.fingerprint, other.pool) or any(
        spec.projected for manifest in (first, other) for spec in manifest.hidden.values()
    ):
        raise ConfigError(
            "student.mixture: states of another teacher, with other pooling or on another basis, are in another space "
            "than the states of the campaign's teacher, and one student layer cannot match both: leave the losses of "
            "hidden states out"
        )
