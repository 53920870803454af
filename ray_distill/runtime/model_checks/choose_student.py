"""Replace `student.size` and `student.latency_ms` by the model that they choose.

The campaign is then the one that a file with this model describes, with the same keys. A size follows from the
teacher's config alone; what a latency chose is measured once, and kept:

<output>/state/student-<key>.json   by the limit, the teacher's config, the student's texts, device and threads
"""

from bisect import bisect_right
from typing import Any, ClassVar

import torch

from ray_distill.artifacts import Document, Efficiency, Number
from ray_distill.config import Campaign, StudentModel
from ray_distill.errors import ConfigError, DistillError
from ray_distill.evaluation.measures.efficiency import Runner, is_unsteady, measure_efficiency
from ray_distill.fingerprint import fingerprint
from ray_distill.models.core.fingerprint import finish
from ray_distill.models.core.forward import forward
from ray_distill.models.students.layer_copy import fresh
from ray_distill.models.students.size import Scalable, SizedStudent, open_scalable
from ray_distill.runtime.core.class_names import teacher_names, with_teacher_names
from ray_distill.runtime.model_checks.made_up_labels import made_up_rows
from ray_distill.runtime.model_checks.student import STAND_IN, count_parameters_of
from ray_distill.storage import files
from ray_distill.storage.sealed import read_document, write_sealed
from ray_distill.tasks.catalogue import get_task

#: Shares of the teacher's parameters whose students are timed, from the greatest; each is an eighth less.
SHARES = tuple(0.95 * 0.875**step for step in range(28))
#: Timed examples of a student.
REQUESTS = 50

_MEASURE_AGAIN = "delete it, and the student is chosen again"
#: Fields of a transformers config that do not change a student's shape.
_NAMES = ("_name_or_path", "transformers_version", "id2label", "label2id")


class ChosenByLatency(Document):
    """The student that a latency chose."""

    refusal: ClassVar[type[DistillError]] = ConfigError

    key: str
    model: dict[str, Any]
    """Fields of `StudentModel`."""
    milliseconds: Number
    """Median of one example."""


def sized(config: Campaign) -> Campaign:
    """Return the campaign with the model that its size or latency chooses; others as they are.

    Raises:
        ConfigError: no student of the teacher is so small, or so fast, or its architecture has no sizes.
        ModelError, StorageError: the teacher's config or tokenizer cannot be read.
    """
    student = config.student
    if student.size is None and student.latency_ms is None:
        return config
    hidden = config.labels.hidden
    field = "student.size" if student.size is not None else "student.latency_ms"
    found = open_scalable(
        student.model,
        task=config.task,
        classes=class_names(config),
        teacher=with_teacher_names(config).labels.teacher,
        field=field,
        # States of single tokens cannot be compared with those of other tokens.
        cuts_tokens=not (hidden.layers and hidden.pool == "token"),
    )
    if student.size is not None:
        chosen = found.at(student.size)
        model = chosen.model.model_copy(update={"chosen_by": f"size {student.size:g}: {chosen.in_words}"})
    else:
        model = _by_latency(config, found)
    update = {"model": model, "size": None, "latency_ms": None}
    return config.model_copy(update={"student": student.model_copy(update=update)})


def class_names(config: Campaign) -> tuple[str, ...]:
    """Return the names of the classes, or two that stand in where only the rows have them."""
    if config.snapshot.classes is not None:
        return tuple(config.snapshot.classes)
    found = teacher_names(with_teacher_names(config))
    return STAND_IN if found is None else found.names


def describe_student(config: Campaign) -> str:
    """Return the student's source and its number of parameters, in words.

    Args:
        config: whose student has been checked.
    """
    model, names = config.student.model, class_names(config)
    if model.chosen_by is not None:
        return model.chosen_by
    if model.source == "module" and names == STAND_IN:
        return f"from module {model.model}"
    found = count_parameters_of(config, names)
    share = model.kept_tokens is not None and model.kept_tokens.keep is not None
    most = "at most " if share else ""
    return f"from {model.source}{f' {model.model}' if model.model else ''}: {most}{found:,} parameters"


def _by_latency(config: Campaign, scalable: Scalable) -> StudentModel:
    resources, limit = config.labels.resources, config.student.latency_ms
    assert limit is not None
    device = "cuda" if resources.gpus else "cpu"
    if resources.gpus and not torch.cuda.is_available():
        raise ConfigError(
            "student.latency_ms is measured on the machine of the command, which has no GPU, and models are evaluated "
            f"on {resources.gpus:g} (labels.resources.gpus): set student.size instead, or run the command where one is"
        )
    threads = max(1, int(resources.cpus))
    teacher = {name: value for name, value in scalable.config.to_dict().items() if name not in _NAMES}
    texts = [scalable.own.max_length, scalable.cuts_tokens]
    settings = [limit, teacher, texts, config.task, len(class_names(config)), device, threads]
    key = fingerprint(settings)[:16]
    url = files.join(files.absolute(config.output_url), "state", f"student-{key}.json")
    if files.exists(url):
        return StudentModel.model_validate(read_document(ChosenByLatency, url, _MEASURE_AGAIN).model)
    chosen, taken, busy = _fastest(scalable, limit, device=device, threads=threads)
    where = f"{threads} thread(s)" if device == "cpu" else "a GPU"
    words = f"latency_ms {limit:g}: {chosen.in_words}, {taken:.3g} ms on {where}{' of a busy machine' if busy else ''}"
    model = chosen.model.model_copy(update={"chosen_by": words})
    kept = model.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    write_sealed(url, ChosenByLatency(key=key, model={"from": "config", **kept}, milliseconds=taken).to_dict())
    return model


def _fastest(scalable: Scalable, limit: float, *, device: str, threads: int) -> tuple[SizedStudent, float, bool]:
    """Return the largest student within a latency, its milliseconds, and whether times varied.

    Raises:
        ConfigError: the smallest one is slower.
    """
    shapes = _shapes(scalable)
    before, times = torch.get_num_threads(), dict[int, Efficiency]()

    def milliseconds(at: int) -> float:
        times[at] = _timed(scalable, shapes[at], device)
        return times[at].latency_ms_p50

    torch.set_num_threads(threads)
    try:
        within = bisect_right(range(len(shapes)), limit, key=milliseconds)
    finally:
        torch.set_num_threads(before)
    if within == 0:
        shorter = ", or student.model.max_length to less" if scalable.own.max_length is not None else ""
        raise ConfigError(
            f"student.latency_ms is {limit:g}, and the smallest student that is made of {scalable.own.model} takes "
            f"{times[0].latency_ms_p50:.3g} ms here: set it to more{shorter}, or describe a faster student as "
            "student.model (from: config with overrides, checkpoint or module)"
        )
    return shapes[within - 1], times[within - 1].latency_ms_p50, any(map(is_unsteady, times.values()))


def _shapes(scalable: Scalable) -> list[SizedStudent]:
    """Return the different students of `SHARES`, from the smallest one that there is."""
    found = [scalable.at(SHARES[0])]
    for share in SHARES[1:]:
        try:
            one = scalable.at(share)
        except ConfigError:  # smaller ones do not exist either
            break
        if one.parameters < found[-1].parameters:
            found.append(one)
    return found[::-1]


def _timed(scalable: Scalable, chosen: SizedStudent, device: str) -> Efficiency:
    """Time one example, as evaluation does, with drawn weights."""
    task, model_config = get_task(scalable.task), scalable.config_of(chosen.model)
    module = fresh(model_config, scalable.own, scalable.task, 0).to(device).eval()
    model = finish(
        module,
        scalable.processor,
        scalable.kind.space(model_config),
        task=scalable.task,
        url=scalable.own.model,
        identity={},
        describe={},
    )
    longest = made_up_rows(task, model, 2)  # the second one is as long as texts may be

    def answer(index_B: Any) -> object:
        with torch.inference_mode():
            return forward(module, task.inputs.collate(longest, index_B + 1))

    runner = Runner(run=answer, parameters=chosen.parameters, bytes_on_disk=0, device=device)
    return measure_efficiency({"student": runner}, examples=1, requests=REQUESTS, batch=1)["student"]
