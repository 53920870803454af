"""Check models where a command starts: heads, a made-up example, a training step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ray_distill.config import Campaign, StudentModel
from ray_distill.errors import DistillError
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.labels.store.label_store import open_store
from ray_distill.models.core.module_function import is_factory
from ray_distill.runtime.core.class_names import with_teacher_names
from ray_distill.runtime.labelling.identify_teacher import TeacherFacts, make_manifest
from ray_distill.runtime.model_checks.stored_mass import check_stored_mass
from ray_distill.runtime.model_checks.student import check_shape, open_student
from ray_distill.runtime.model_checks.teacher import TeacherHead, open_teacher_head
from ray_distill.runtime.model_checks.training_step import has_batch_norm, try_step
from ray_distill.storage import files
from ray_distill.students.recipe import BATCHES
from ray_distill.tasks.catalogue import get_task


@dataclass(frozen=True, kw_only=True)
class OpenedTeacher:
    """A teacher that was opened, and the store of its labels."""

    config: Campaign
    """The campaign, with the teacher's class names where it names none."""
    head: TeacherHead
    """Empty where the teacher was not opened."""
    stored: StoreManifest | None
    """None without a store."""


def check_models(
    config: Campaign, *, teacher: bool = True, student: bool = True, call: bool = False
) -> tuple[str, ...]:
    """Refuse models that labelling or training would refuse later; return notes for the plan.

    Args:
        config: the campaign, whose settings have been checked.
        teacher: open the teacher. A store that exists describes its teacher: then weights are not read, and training
            needs no teacher.
        student: build the student, and train it for one step on made-up labels. Beside a store that exists, a student
            that starts from the teacher's weights is left to the dry run.
        call: call a teacher that is a function; see `open_teacher_head`.

    Raises:
        DistillError: of the kind that the stage would raise, with the field that names the model.
    """
    opened = check_teacher(config, call=call, teacher=teacher)
    return opened.head.notes + (check_student(opened.config, opened, call=call) if student else ())


def check_teacher(config: Campaign, *, call: bool, teacher: bool = True) -> OpenedTeacher:
    """Open the teacher and the store of a campaign; arguments and errors as of `check_models`."""
    if teacher:
        with _named("labels.teacher.model"):
            config = with_teacher_names(config)
    stored, head = _stored(config), TeacherHead()
    if teacher and not (stored is not None and is_factory(config.labels.teacher.model)):
        with _named("labels.teacher.model"):
            head = open_teacher_head(config, call=call, load=stored is None)
    if teacher and stored is not None:
        _refuse_other_settings(config, stored, head)
    return OpenedTeacher(config=config, head=head, stored=stored)


def check_student(config: Campaign, opened: OpenedTeacher, *, call: bool) -> tuple[str, ...]:
    """Build the student, and train it for one step; arguments and errors as of `check_models`."""
    stored, head = opened.stored, opened.head
    manifest = stored or _manifest(config, head)
    if manifest is None:
        with _named("student.model"):
            check_shape(config)
        return ()
    if stored is not None:
        check_stored_mass(config, stored)
        if not call and _starts_from_teacher(config.student.model):
            return ()  # a command with nothing left to do must not read the teacher's weights
    with _named("student.model"):
        found = open_student(config, manifest.space)
    if found is None or (config.labels.hidden.layers and not manifest.hidden):
        return ()
    with _named("student"):
        try_step(config, found, manifest, head.widths)
    return _notes(config) if has_batch_norm(found.module) else ()


def _stored(config: Campaign) -> StoreManifest | None:
    """Return the manifest of the label store, after comparing its classes; None without one."""
    if not files.exists(files.join(config.store_url, "store.json")):
        return None
    manifest = open_store(config.store_url).manifest
    family = get_task(config.task).answers.model
    if config.snapshot.classes:
        family.check_classes(manifest.space, config.snapshot.classes, f"of the label store {config.store_url}")
    return manifest


def _refuse_other_settings(config: Campaign, stored: StoreManifest, head: TeacherHead) -> None:
    """Refuse a store of other settings; labelling also compares the teacher's fingerprint.

    Raises:
        StoreMismatch: names each field that differs.
    """
    layers = tuple(stored.hidden) if config.labels.hidden.layers and not head.layers else head.layers
    facts = TeacherFacts(
        fingerprint=stored.teacher.fingerprint, space=stored.space, layers=layers, head_url=None, describe={}
    )
    requested = make_manifest(config, facts)
    stored.require(requested.with_changes(teacher=stored.teacher), config.store_url)


def _manifest(config: Campaign, head: TeacherHead) -> StoreManifest | None:
    """Return the manifest that a new store would have; None while the classes are unknown."""
    space = head.space or _configured(config)
    if space is None:
        return None
    facts = TeacherFacts(
        fingerprint="made up", space=space, layers=head.layers, head_url=None, describe={}, tokens=head.tokens
    )
    return make_manifest(config, facts)


def _configured(config: Campaign) -> AnswerSpace | None:
    names = config.snapshot.classes
    return AnswerSpace(names=tuple(names), size=len(names)) if names else None


def _starts_from_teacher(student: StudentModel) -> bool:
    return student.source in ("teacher_layers", "teacher_width") or student.embeddings != "new"


def _notes(config: Campaign) -> tuple[str, ...]:
    training = config.student.training
    batch = training.global_batch or BATCHES[1]
    if training.most_workers == 1 and batch <= training.micro_batch:
        return ()
    return (
        f"the student has batch norms, whose statistics are those of one forward pass: micro_batch "
        f"{training.micro_batch} and the number of workers change its curve",
    )


@contextmanager
def _named(field: str) -> Iterator[None]:
    """Begin the message of an error with a field, unless it begins with one."""
    try:
        yield
    except DistillError as error:
        text = str(error)
        if text.split(".")[0] in Campaign.model_fields:
            raise
        raise type(error)(f"{field}: {text}") from error
