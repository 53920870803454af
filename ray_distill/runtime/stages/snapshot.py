"""Take and open a campaign's snapshots, all with the same inputs, kind of labels and seed."""

from collections.abc import Mapping

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign, SnapshotConfig
from ray_distill.errors import SnapshotError
from ray_distill.models.core.module_function import is_factory
from ray_distill.models.io.teacher_names import function_names
from ray_distill.runtime.core.class_names import numbers, teacher_names
from ray_distill.runtime.core.word_neighbours import open_neighbours
from ray_distill.runtime.labelling.bounded_task import run_teacher_task
from ray_distill.snapshots.augment.add_views import add_views
from ray_distill.snapshots.augment.kinds import with_neighbours
from ray_distill.snapshots.label_reading.reading import ClassNames
from ray_distill.snapshots.manifest import Truth
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.snapshots.take import take_snapshot
from ray_distill.storage import files
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.view_kinds import chosen_kinds, needs_neighbours

_LABELS: Mapping[Truth, str] = {"class": "one class", "classes": "a set of classes", "none": "no label"}


def freeze(config: Campaign, sources: SnapshotConfig | None = None, *, empty_splits: bool = False) -> SnapshotRef:
    """Freeze the campaign's sources, or other sources, into the folder of its snapshots.

    With ``snapshot.augment`` the result is the snapshot with views, which is derived from the one without.

    A snapshot that exists already is left unchanged.

    Classes that ``snapshot.classes`` does not list are the teacher's, if it has names.

    Args:
        config: the campaign.
        sources: other sources than the campaign's.
        empty_splits: as `take_snapshot`.

    Raises:
        SnapshotError, StorageError: as `take_snapshot` and `add_views`.
        ConfigError: ``snapshot.augment`` does not go with the task or the teacher; no source was read.
        ModelError: the teacher's classes cannot be read.
    """
    task, chosen = get_task(config.task), sources or config.snapshot
    kinds, url = chosen_kinds(config, task), files.join(files.absolute(config.output_url), "snapshots")
    if chosen.augment is not None and needs_neighbours(config, task):
        kinds = with_neighbours(kinds, open_neighbours(config))
    taken = take_snapshot(
        chosen,
        input_column=task.inputs.column,
        seed=config.seed,
        url=url,
        binary=task.inputs.binary,
        verify=task.inputs.verify,
        nested=task.inputs.nested(config),
        companions=task.inputs.companions,
        truth=task.answers.truth,
        known=known_classes(config) if chosen.classes is None else None,
        empty_splits=empty_splits,
    )
    if chosen.augment is None:
        return taken
    return add_views(
        open_snapshot(taken), kinds, views=chosen.augment.views, seed=config.seed, url=url, shard_rows=chosen.shard_rows
    )


def freeze_ceiling(config: Campaign, classes: tuple[str, ...]) -> SnapshotRef | None:
    """Freeze the teacher's own labelled rows, like any other input; None if not configured.

    Raises:
        SnapshotError: as `freeze`; the message names the field.
        StorageError, ModelError: as `freeze`.
    """
    source = config.student.ceiling
    if source is None:
        return None
    own = config.snapshot.traffic_alone().model_copy(update={"source": source, "exclude": (), "classes": classes})
    try:
        return freeze(config, own)
    except SnapshotError as error:
        raise SnapshotError(f"student.ceiling: {error}") from error


def known_classes(config: Campaign) -> ClassNames | None:
    """Return the teacher's classes; the model of a function is built for them on the cluster.

    Returns:
        None where the teacher has no names: then the labels name the classes.

    Raises:
        ModelError, StorageError: the teacher cannot be opened.
    """
    teacher = config.labels.teacher
    origin = f"the teacher {teacher.model}"
    if not get_task(config.task).answers.reads_labels() or teacher.head is not None:
        return None
    if is_factory(teacher.model):
        names = teacher.classes or run_teacher_task(
            function_names, teacher, labels=config.labels, rows=0, what="reading the teacher's classes"
        )
        return ClassNames(names=names, origin=origin) if names else None
    found = teacher_names(config)
    if found is None:
        return None
    return ClassNames(names=numbers(found) if found.generic else found.names, origin=origin, generic=found.generic)


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
