"""List the engines that run teachers. A new engine is one file and one entry here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ray_distill.config import LabelsConfig, TeacherConfig
from ray_distill.errors import ChangedModel, ConfigError, TeacherRefused
from ray_distill.labels.format.codecs import encodings
from ray_distill.labels.model.distributions import Family
from ray_distill.labels.model.manifest import TeacherIdentity
from ray_distill.models.io.trained import pinned
from ray_distill.tasks.catalogue import get_task
from ray_distill.teachers import vllm_limits
from ray_distill.teachers.base import Identity, Teacher
from ray_distill.teachers.transformers_teacher import open_teacher as open_transformers
from ray_distill.teachers.vllm_teacher import identify_vllm, open_vllm


class Open(Protocol):
    """Load a teacher, ready to label."""

    def __call__(self, config: TeacherConfig, *, task: str, head_url: str | None) -> Teacher:
        """See `open_teacher`."""


class Identify(Protocol):
    """Identify a teacher, without starting an engine where that is possible."""

    def __call__(self, config: TeacherConfig, *, task: str, head_url: str | None) -> Identity:
        """See `identify`."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One way to run a teacher."""

    open: Open
    identify: Identify
    estimators: Mapping[Family, tuple[str, ...]]
    """Estimators that it can give, by kind of distribution; a kind that is missing it cannot give at all."""
    refuse: Callable[[LabelsConfig, str], None] | None = None
    """Refuse settings of labels for a task, before anything is started."""
    refuse_classes: Callable[[LabelsConfig, int], None] | None = None
    """Refuse settings of labels for a number of classes."""
    python: Callable[[TeacherConfig], str | None] = lambda _: None
    """Interpreter of the engine's own environment; None: the one of Ray's workers."""
    keeps_memory: bool = False
    """True: its memory is released when its process ends, so that a task must end its process."""


ENGINES: Mapping[str, Engine] = {
    "transformers": Engine(
        open=open_transformers,
        identify=open_transformers,
        estimators={"categorical": ("dense", "topk", "sampled", "hybrid"), "bernoulli": ("dense",)},
    ),
    "vllm": Engine(
        open=lambda config, *, task, head_url: open_vllm(config, task=task),
        identify=lambda config, *, task, head_url: identify_vllm(config, task=task),
        estimators={"categorical": ("topk",)},
        refuse=vllm_limits.refuse_settings,
        refuse_classes=vllm_limits.refuse_classes,
        python=lambda teacher: teacher.vllm.python,
        keeps_memory=True,
    ),
}


_KINDS: Mapping[Family, str] = {
    "categorical": "one distribution over all classes (a softmax)",
    "bernoulli": "a yes or no for each class (sigmoids)",
}


def engine_of(config: TeacherConfig) -> Engine:
    """Return the engine of a teacher.

    Raises:
        ConfigError: there is none of this name; the known ones are listed.
    """
    if config.engine not in ENGINES:
        raise ConfigError(f"labels.teacher.engine: unknown {config.engine!r}; the engines are {', '.join(ENGINES)}")
    return ENGINES[config.engine]


def open_teacher(config: TeacherConfig, *, task: str, head_url: str | None = None) -> Teacher:
    """Load the teacher that a config names, ready to label.

    Raises:
        TeacherRefused: its engine cannot load it.
        ModelError, ConfigError, StorageError: as `load_model`.
    """
    return engine_of(config).open(config, task=task, head_url=head_url)


def open_stored_teacher(config: TeacherConfig, stored: TeacherIdentity, *, task: str) -> Teacher:
    """Load a store's teacher on this machine, and verify that it is the same.

    Raises:
        ChangedModel: its weights, head, settings or tokens are others here.
        TeacherRefused, ModelError, ConfigError, StorageError: as `open_teacher`.
    """
    try:
        teacher = open_teacher(pinned(config, stored), task=task, head_url=stored.head)
    except ChangedModel as error:
        raise stored.changed(error.found, config.model) from error
    stored.require(teacher.fingerprint, config.model)
    return teacher


def identify(config: TeacherConfig, *, task: str, head_url: str | None = None) -> Identity:
    """Identify the teacher of a config; vLLM is not started. Errors as `open_teacher`."""
    return engine_of(config).identify(config, task=task, head_url=head_url)


def refuse_labels(labels: LabelsConfig, *, task: str) -> None:
    """Refuse labels that the teacher's engine cannot make, with all reasons.

    Raises:
        TeacherRefused: a setting of the teacher, the signal or the resources that the engine cannot serve.
        ConfigError: an unknown engine.
    """
    engine = engine_of(labels.teacher)
    if engine.refuse is not None:
        engine.refuse(labels, task)
    refuse_kind(labels, get_task(task).answers.model.FAMILY)


def refuse_kind(labels: LabelsConfig, family: Family) -> None:
    """Refuse a signal that the engine cannot give of such distributions.

    Errors are those of `refuse_labels`.
    """
    given, signal = engine_of(labels.teacher).estimators.get(family, ()), labels.signal
    if signal.estimator not in given:
        raise TeacherRefused(
            f"labels.signal.estimator is {signal.estimator}, but of {_KINDS[family]} the engine "
            f"{labels.teacher.engine} gives {' or '.join(given) or 'nothing'}: set it to that, or use another engine"
        )
    if signal.encoding not in encodings(family):
        raise TeacherRefused(
            f"labels.signal.encoding is {signal.encoding}, which cannot store {_KINDS[family]}: set it to "
            f"{' or '.join(encodings(family))}"
        )


def refuse_classes(labels: LabelsConfig, classes: int) -> None:
    """Refuse labels that the engine cannot make over so many classes; errors as `refuse_labels`."""
    engine = engine_of(labels.teacher)
    if engine.refuse_classes is not None:
        engine.refuse_classes(labels, classes)
