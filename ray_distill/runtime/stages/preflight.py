"""Refuse settings and models that training or evaluation would refuse hours later."""

from pathlib import Path

from ray_distill.config import Campaign
from ray_distill.errors import ConfigError, DistillError, ModelError
from ray_distill.losses.base import Labels
from ray_distill.models.core.module_function import import_factory, is_factory
from ray_distill.promotion.chain import read_chain
from ray_distill.promotion.rules import wrong_limits
from ray_distill.runtime.core.class_names import unnamed_classes
from ray_distill.runtime.core.lost_store import new_store_named
from ray_distill.runtime.core.word_neighbours import wrong_neighbours
from ray_distill.runtime.model_checks.check import check_models
from ray_distill.runtime.training.label_mixture import check_mixture, temperatures_of
from ray_distill.snapshots.sources.columns import InputColumn, source_columns
from ray_distill.snapshots.sources.resolve import describe_sources
from ray_distill.storage import files, remote
from ray_distill.students.data.answer_format import learn_facet
from ray_distill.students.engines.engine import check_compiler
from ray_distill.students.objective.validate_losses import check_losses
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.known_names import unknown_names
from ray_distill.tasks.view_kinds import wrong_views
from ray_distill.teachers.engines import refuse_labels
from ray_distill.text import did_you_mean


def preflight(config: Campaign, *, teacher: bool = True, student: bool = True, call: bool = False) -> tuple[str, ...]:
    """Check settings and models before anything is spent; return notes for the plan.

    Args:
        config: the campaign.
        teacher: whether the command needs the teacher; see `check_models`.
        student: whether the command trains, or a later one will.
        call: whether a teacher that is a function is called in this process: by a dry run alone.

    Raises:
        DistillError: as `check`, `read_chain` and `check_models`; nothing has been spent.
    """
    check(config, teacher=teacher)
    read_chain(files.join(config.output_url, "promotion"))  # `promote` must be able to continue it
    with new_store_named(config):
        return check_models(config, teacher=teacher, student=student, call=call)


def names_student(config: Campaign) -> bool:
    """Return whether ``student.model`` is given: a campaign may only label, and has none then."""
    return "student" in config.model_fields_set and "model" in config.student.model_fields_set


def check(config: Campaign, *, teacher: bool = True) -> None:
    """Refuse settings that training or evaluation would refuse after labelling.

    Args:
        config: the campaign.
        teacher: whether the teacher must exist; its store suffices for training.

    Raises:
        ConfigError: settings are wrong; the message names all of them.
        TeacherRefused: the teacher's engine cannot give the configured labels.
    """
    labels, hidden = config.labels, config.labels.hidden
    wrong = check_mixture(config)
    temperatures = labels.signal.temperatures if wrong else temperatures_of(config)
    task = get_task(config.task)
    wrong += check_losses(
        config.student.losses,
        kinds=learn_facet(task.answers).LOSSES,
        training=config.student.training,
        labels=Labels(
            temperatures=temperatures,
            drawn=labels.signal.drawn,
            hidden=bool(hidden.layers),
            pool=hidden.pool,
            basis=hidden.rank is not None or hidden.variance is not None,
        ),
    )
    wrong += unknown_names(config, task) + wrong_limits(config.gate, config.task) + unknown_objective(config)
    wrong += task.refuse(config) + wrong_views(config, task) + check_compiler(config.student.training)
    if config.sequences is not None and config.sequences.filters.scorer is not None:
        try:
            import_factory(config.sequences.filters.scorer)
        except ModelError as error:
            wrong.append(f"sequences.filters.scorer: {error}")
    wrong += (
        _wrong_columns(config)
        + (_teacher_mistakes(config) if teacher else [])
        + _missing_sources(config)
        + _unusable_outputs(config)
    )
    if wrong:
        raise ConfigError(f"{len(wrong)} wrong field(s)\n  " + "\n  ".join(wrong))
    refuse_labels(labels, task=config.task)


def _teacher_mistakes(config: Campaign) -> list[str]:
    """Return a sentence if there is no such teacher, or nothing names its classes."""
    model = config.labels.teacher.model
    if not is_factory(model) and not files.exists(model):
        return [f"labels.teacher.model: {model} does not exist; give a checkpoint's folder or URL, or module:function"]
    try:
        return unnamed_classes(config) + wrong_neighbours(config)
    except DistillError as error:
        return [f"labels.teacher.model: {error}"]


def _missing_sources(config: Campaign) -> list[str]:
    """Return a sentence for the teacher's own rows, if the configured source has no file."""
    if config.student.ceiling is None:
        return []
    try:
        describe_sources(config.snapshot.model_copy(update={"source": config.student.ceiling, "exclude": ()}))
    except DistillError as error:
        return [f"student.ceiling: {error}"]
    return []


def _wrong_columns(config: Campaign) -> list[str]:
    """Return a sentence for each section that reads labels as inputs, or has wrong slices."""
    wrong, name = [], get_task(config.task).inputs.column
    sections = {"snapshot.columns": config.snapshot.columns}
    sections |= {
        f"snapshot.{split}.columns": own.columns for split, own in config.snapshot.own_sources.items() if own.columns
    }
    for section, columns in sections.items():
        try:
            mapping = source_columns(columns, InputColumn(name=name))
        except DistillError as error:
            wrong.append(str(error))
            continue
        if mapping[name] == columns.label:
            wrong.append(
                f"{section}.label: the column {columns.label!r} is the {name} too, so the answer of each row would be "
                "its input: name another column for one of them"
            )
    return wrong


def _unusable_outputs(config: Campaign) -> list[str]:
    """Return a sentence for each output that no stage could write, or not safely."""
    wrong = []
    outputs = {"output": config.output_url} | ({"labels.store": config.labels.store} if config.labels.store else {})
    for field, url in outputs.items():
        if not files.is_local(url):
            try:
                remote.require_exclusive(url)
            except DistillError as error:
                wrong.append(f"{field}: {error}")
            continue
        path = Path(files.absolute(url).removeprefix("file://"))
        found = next((place for place in (path, *path.parents) if place.is_file()), None)
        if found is not None:
            wrong.append(f"{field}: {found} is a file: name a folder")
    return wrong


def unknown_objective(config: Campaign) -> list[str]:
    """Return one sentence if the task never measures the sweep's objective."""
    if config.sweep is None or config.sweep.objective is None:
        return []
    known, chosen = learn_facet(get_task(config.task).answers).OBJECTIVES, config.sweep.objective
    if chosen in known:
        return []
    return [f"sweep.objective: {config.task} has no {chosen!r}; it has {', '.join(known)}{did_you_mean(chosen, known)}"]
