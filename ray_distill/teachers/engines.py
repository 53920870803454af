"""Open and identify teachers by the engine that a config names."""

from ray_distill.config import TeacherConfig
from ray_distill.teachers.base import Identity, Teacher
from ray_distill.teachers.transformers_teacher import open_teacher as open_transformers
from ray_distill.teachers.vllm_teacher import identify_vllm, open_vllm


def open_teacher(config: TeacherConfig, *, task: str, head_url: str | None = None) -> Teacher:
    """Load the teacher a config names, ready to answer.

    Raises:
        TeacherRefused: its engine cannot load it.
        ModelError, ConfigError, StorageError: as `load_model`.
    """
    if config.engine == "vllm":
        return open_vllm(config, task=task)
    return open_transformers(config, task=task, head_url=head_url)


def identify(config: TeacherConfig, *, task: str, head_url: str | None = None) -> Identity:
    """Identify the teacher of a config without starting vLLM. Errors as `open_teacher`."""
    if config.engine == "vllm":
        return identify_vllm(config, task=task)
    return open_transformers(config, task=task, head_url=head_url)


def estimators(config: TeacherConfig) -> tuple[str, ...]:
    """Estimators that the teacher's engine can give."""
    return ("topk",) if config.engine == "vllm" else ("dense", "topk", "sampled", "hybrid")
