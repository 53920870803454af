"""Load trained students and labelling teachers, and verify that they have not changed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_distill.artifacts import StudentRef
from ray_distill.config import TeacherConfig
from ray_distill.errors import ChangedModel
from ray_distill.labels.model.manifest import TeacherIdentity
from ray_distill.models.core.checkpoint_files import (
    check_beside,
    checkpoint_digest,
    open_checkpoint,
    read_facts,
    read_saved,
)
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def load_trained(ref: StudentRef, teacher: TeacherConfig, *, task: str) -> Model:
    """Load a student on the teacher's device and with its language settings.

    Raises:
        ChangedModel: its files are not those that were trained.
        ModelError, StorageError: as `load_model`.
    """
    spec = TeacherConfig(model=ref.url, revision=ref.fingerprint, device=teacher.device, language=teacher.language)
    try:
        read_facts(ref.url)
        return load_model(spec, task=task)
    except ChangedModel as error:
        raise _changed(ref, error.found) from error


def load_labelling_teacher(config: TeacherConfig, stored: TeacherIdentity, *, task: str) -> Model:
    """Load the teacher of a label store with transformers, whatever engine labelled.

    Raises:
        ChangedModel: its files, head, settings or tokens are not those that made the labels.
        ModelError, ConfigError, StorageError: as `load_model`.
    """
    try:
        model = load_model(pinned(config, stored), task=task, head_url=stored.head)
    except ChangedModel as error:
        raise stored.changed(error.found, config.model) from error
    if stored.engine is None:
        stored.require(model.fingerprint, config.model)
    elif stored.checkpoint != (found := model.describe.get("checkpoint")):
        raise stored.changed(str(found), config.model)
    return model


def pinned(config: TeacherConfig, stored: TeacherIdentity) -> TeacherConfig:
    """Pin the store's checkpoint as revision: other files are refused before they are loaded."""
    known = stored.checkpoint is not None and _DIGEST.fullmatch(stored.checkpoint) is not None
    return config.model_copy(update={"revision": stored.checkpoint}) if known and not config.revision else config


@contextmanager
def open_trained(ref: StudentRef) -> Iterator[Path]:
    """Yield a local folder with the student's files, after they were verified.

    Raises:
        ChangedModel: they are not those that were trained.
        ModelError, StorageError: as `open_checkpoint`.
    """
    try:
        read_facts(ref.url)  # a folder that is gone is not a checkpoint of the user's that is misspelt
    except ChangedModel as error:
        raise _changed(ref, error.found) from error
    with open_checkpoint(ref.url) as folder:
        verify_trained(folder, ref)
        yield folder


def verify_trained(folder: Path, ref: StudentRef) -> None:
    """Compare the files in a folder with the student's fingerprint.

    Raises:
        ChangedModel: they are not those that were trained.
    """
    try:
        found = checkpoint_digest(folder)
        if found != ref.fingerprint:
            raise _changed(ref, found)
        read_facts(str(folder))
        check_beside(folder, read_saved(str(folder)), ref.url, digest=found)
    except ChangedModel as error:
        raise _changed(ref, error.found) from error


def _changed(ref: StudentRef, found: str) -> ChangedModel:
    digests = f"its files have {found}, its reference has {ref.fingerprint}"
    why = digests if found.startswith("sha256:") else found
    return ChangedModel(
        f"{ref.url} is not the {ref.arm} that was trained: {why}. Restore "
        "them from a copy or, if it was registered, from the registry; or delete the "
        "folder and run `ray-distill train` to train it again",
        found=found,
    )
