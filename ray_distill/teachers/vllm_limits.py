"""Refuse settings that vLLM cannot serve, before anything is started."""

from collections.abc import Iterator

from ray_distill.config import LabelsConfig, TeacherConfig
from ray_distill.errors import TeacherRefused
from ray_distill.models.core.module_function import is_factory
from ray_distill.tasks.catalogue import get_task
from ray_distill.teachers.base import LabelRequest

ENGINE = "labels.teacher.engine: vllm"


def refuse_settings(labels: LabelsConfig, task: str) -> None:
    """Refuse labels that vLLM cannot make, with all reasons.

    Raises:
        TeacherRefused: a setting of the teacher, the signal or the resources that it cannot serve.
    """
    signal, share = labels.signal, labels.teacher.vllm.tensor_parallel_size
    request = LabelRequest(
        estimator=signal.estimator, k=signal.k, temperatures=signal.temperatures, layers=labels.hidden.layers
    )
    reasons = [*_of_teacher(labels.teacher, task), *_of_request(request)]
    if share > 1 and labels.resources.gpus != share:
        reasons.append(
            f"labels.teacher.vllm.tensor_parallel_size is {share}, but labels.resources.gpus is "
            f"{labels.resources.gpus:g}: give an actor as many GPUs as the model is split over"
        )
    _raise(labels.teacher.model, reasons)


def refuse_teacher(config: TeacherConfig, *, task: str) -> None:
    """Refuse a model that vLLM cannot load as a teacher; errors as `refuse_settings`."""
    _raise(config.model, list(_of_teacher(config, task)))


def refuse_classes(labels: LabelsConfig, vocabulary: int) -> None:
    """Refuse a k above the number of vLLM's classes; errors as `refuse_settings`."""
    _raise(labels.teacher.model, list(_of_classes(labels.signal.k, vocabulary)))


def refuse_request(request: LabelRequest, vocabulary: int, model: str) -> None:
    """Refuse a signal that vLLM cannot give with this vocabulary; errors as `refuse_settings`."""
    _raise(model, [*_of_request(request), *_of_classes(request.k, vocabulary)])


def _of_teacher(config: TeacherConfig, task: str) -> Iterator[str]:
    if get_task(task).auto_class != "AutoModelForCausalLM":
        yield f"the task is {task}, and vLLM scores texts by a language model: use engine transformers"
    if is_factory(config.model):
        yield "it is a module:function, and vLLM loads checkpoints: use engine transformers"
    if config.head is not None:
        yield "labels.teacher.head fits a classifier on hidden states, which vLLM does not give: leave it out"
    if config.device != "auto":
        yield (
            f"labels.teacher.device is {config.device}, but vLLM chooses the device by its own build: leave it out, "
            "and share GPUs with labels.teacher.vllm.tensor_parallel_size"
        )


def _of_request(request: LabelRequest) -> Iterator[str]:
    if request.estimator != "topk":
        yield f"labels.signal.estimator is {request.estimator}, {_ESTIMATORS[request.estimator]}: use topk"
    others = [f"{at:g}" for at in request.temperatures if at != 1]
    if others:
        yield (
            f"labels.signal.temperatures has {', '.join(others)}, and the mass outside the top k at another "
            "temperature than 1 needs every logit, which vLLM keeps to itself: use 1 alone"
        )
    if request.layers:
        yield (
            f"labels.hidden.layers is {list(request.layers)}, but vLLM's extractor gives the last layer before "
            "the final norm alone: leave hidden states out"
        )


def _of_classes(k: int, vocabulary: int) -> Iterator[str]:
    if k > vocabulary:
        yield f"labels.signal.k is {k}, but it has {vocabulary} tokens: set k to that or less"


_ESTIMATORS = {
    "dense": "but of every class there would be one Python number each",
    "sampled": "but vLLM draws a token for its text, not many for a position, and not seeded by row",
    "hybrid": "but vLLM cannot draw from the rest outside of the top k",
}


def _raise(model: str, reasons: list[str]) -> None:
    if reasons:
        raise TeacherRefused(
            f"the teacher {model} cannot give this with {ENGINE}: "
            + "; ".join(reasons)
            + "; or use engine transformers"
        )
