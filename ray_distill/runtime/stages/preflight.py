"""What is refused before anything is spent: settings that training or evaluation would refuse hours later."""

from collections.abc import Collection
from importlib.util import find_spec

from ray_distill.config import Campaign
from ray_distill.errors import ConfigError, ModelError
from ray_distill.losses.base import Labels
from ray_distill.models.core.module_function import import_factory, is_factory
from ray_distill.promotion.gate import wrong_limits
from ray_distill.runtime.training.label_mixture import check_mixture, temperatures_of
from ray_distill.storage import files
from ray_distill.students.engines.engine import check_compiler
from ray_distill.students.objective.loss_settings import wants_layers
from ray_distill.students.objective.validate_losses import check_losses
from ray_distill.tasks.catalogue import TASKS, TOKEN_TASKS
from ray_distill.teachers.vllm_limits import refuse_labels


def check(config: Campaign) -> None:
    """Refuse now what training or evaluation would refuse when the teacher has been paid for.

    Raises:
        ConfigError: everything that is wrong, at once.
        TeacherRefused: what the teacher's engine cannot give, at once.
    """
    labels, hidden = config.labels, config.labels.hidden
    wrong = check_mixture(config)
    temperatures = labels.signal.temperatures if wrong else temperatures_of(config)
    wrong += check_losses(
        config.student.losses,
        training=config.student.training,
        labels=Labels(
            temperatures=temperatures,
            drawn=labels.signal.estimator in ("sampled", "hybrid"),
            hidden=bool(hidden.layers),
            pool=hidden.pool,
            basis=hidden.rank is not None or hidden.variance is not None,
        ),
    )
    known = corruptions_of(config)
    wrong += [
        f"evaluation.corruptions: {config.task} has no {name!r}; it has {', '.join(sorted(known)) or 'none'}"
        for name in config.evaluation.corruptions or ()
        if name not in known
    ]
    wrong += wrong_limits(config.gate, config.task)
    wrong += _unlike_task(config) + check_compiler(config.student.training)
    if config.sequences is not None and config.sequences.filters.scorer is not None:
        try:
            import_factory(config.sequences.filters.scorer)
        except ModelError as error:
            wrong.append(f"sequences.filters.scorer: {error}")
    if not is_factory(labels.teacher.model) and not files.exists(labels.teacher.model):
        wrong.append(
            f"labels.teacher.model: {labels.teacher.model} does not exist; give a checkpoint's folder or URL, "
            "or module:function"
        )
    if wrong:
        raise ConfigError(f"{len(wrong)} wrong field(s)\n  " + "\n  ".join(wrong))
    refuse_labels(labels, task=config.task)


def corruptions_of(config: Campaign) -> Collection[str]:
    """What evaluation can do to inputs; a conversation must stay what it is."""
    if config.task not in TOKEN_TASKS:
        return TASKS[config.task].corruptions
    return TOKEN_TASKS[config.task].corruptions if config.labels.teacher.language.format == "text" else ()


def _unlike_task(config: Campaign) -> list[str]:
    """Settings that go with another kind of task."""
    labels, student, written = config.labels, config.student, config.task == "seq2seq"
    if (config.snapshot.columns.target is not None) != written:
        return [
            f"snapshot.columns.target: {config.task} "
            + ("needs the column of what is to be written" if written else "writes no targets; leave it out")
        ]
    if config.task not in TOKEN_TASKS:
        return [
            f"{name}: only language models have it, and {config.task} is none; leave it out"
            for name, given in (
                ("student.training.packed", student.training.packed),
                ("student.model.lora", student.model.lora),
            )
            if given
        ]
    named = (
        ("labels.teacher.head", labels.teacher.head),
        ("student.ceiling", student.ceiling),
        ("snapshot.classes", config.snapshot.classes),
        ("snapshot.columns.label", config.snapshot.columns.label),
    )
    wrong = [f"{name}: {config.task} has no classes; leave it out" for name, given in named if given]
    wrong += _of_one_kind(config)
    if labels.hidden.pool != "token" and any(map(wants_layers, student.losses)):
        wrong.append(
            f"labels.hidden.pool is {labels.hidden.pool}: a language model's states are matched token by "
            "token; set it to token, or leave the losses of hidden states out"
        )
    return wrong


def _of_one_kind(config: Campaign) -> list[str]:
    """Settings that go with one kind of language model alone."""
    settings = config.labels.teacher.language
    if config.task != "seq2seq":
        return [
            f"labels.teacher.language.{name}: {config.task} has no sources and targets; leave it out"
            for name in ("prefix", "target_length")
            if getattr(settings, name)
        ]
    wrong = []
    if settings.format != "text":
        wrong.append(
            "labels.teacher.language.format: a source and its target are texts, not a conversation: leave it "
            "out, or take the task causal_lm"
        )
    wrong += [
        f"evaluation.{name}: seq2seq models write targets of sources, and go on from no prompt; leave it out"
        for name in ("prompts", "lm_eval")
        if getattr(config.evaluation, name)
    ]
    sequences, longest = config.sequences, settings.target_length
    if sequences is not None and longest is not None and sequences.new_tokens > longest:
        wrong.append(
            f"sequences.new_tokens is {sequences.new_tokens}, more than the {longest} tokens of a target that "
            "are learnt (labels.teacher.language.target_length): lower the one or raise the other"
        )
    if config.evaluation.overlap and not all(map(find_spec, ("sacrebleu", "rouge_score"))):
        wrong.append("evaluation.overlap: ROUGE and chrF need optional packages: pip install 'ray-distill[seq2seq]'")
    if config.student.training.packed:
        wrong.append(
            "student.training.packed: an encoder reads one source a row, and a decoder looks at all of it, so "
            "rows cannot be put together: leave it out"
        )
    return wrong
