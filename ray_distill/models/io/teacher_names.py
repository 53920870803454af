"""Read the names of a checkpoint's classes from its config, without its weights."""

from dataclasses import dataclass

from ray_distill.config import TeacherConfig
from ray_distill.models.core.checkpoint_files import open_checkpoint, read_metadata
from ray_distill.models.core.module_function import call_factory, is_factory, takes
from ray_distill.models.core.row_classes import are_generic, check_id2label
from ray_distill.models.io.load import read_config
from ray_distill.storage import files
from ray_distill.tasks.catalogue import get_task


@dataclass(frozen=True, kw_only=True)
class TeacherNames:
    """Names of a teacher's classes, in the order of its outputs."""

    names: tuple[str, ...]
    generic: bool
    """Whether these are ``LABEL_0``, ``LABEL_1``…, which transformers writes where nobody gave names."""


def checkpoint_names(config: TeacherConfig, *, task: str) -> TeacherNames | None:
    """Return the names of a checkpoint's classes, whatever ``config.classes`` has.

    Returns:
        None of a function, of a checkpoint that is not there, of an encoder whose head is fitted on labels, and of a
        task without named classes.

    Raises:
        ModelError, StorageError: the checkpoint's config cannot be read, or as `check_id2label`.
    """
    family = get_task(task).answers
    if (
        not family.reads_labels()
        or config.head is not None
        or is_factory(config.model)
        or not files.exists(config.model)
    ):
        return None
    with open_checkpoint(config.model, weights=False) as folder:
        saved = read_metadata(folder)
        if saved.get("factory"):
            names = tuple(saved["classes"])
        else:
            model_config = read_config(folder, config)
            names = family.model.space(model_config).names
            if names:
                check_id2label(config, model_config)
    return TeacherNames(names=names, generic=are_generic(names)) if names else None


def function_names(config: TeacherConfig) -> tuple[str, ...]:
    """Return the names of the classes of a function's model, built without weights if it can.

    Raises:
        ModelError: the function cannot be called.
    """
    unweighted = {"weights": False} if takes(config.model, "weights") else {}
    return call_factory(config.model, {**config.arguments, **unweighted}, seed=0).classes
