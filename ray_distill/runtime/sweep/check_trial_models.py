"""Open the models of a sweep's trials before anything is spent."""

from collections.abc import Sequence

from ray_distill.config import Campaign
from ray_distill.config.trials import Trial, WrongTrials
from ray_distill.errors import DistillError
from ray_distill.fingerprint import fingerprint
from ray_distill.runtime.model_checks.check import check_student, check_teacher
from ray_distill.runtime.sweep.resolve_trials import label_key, labelling

#: Most students that are built before a sweep: each takes up to seconds. Further ones are checked when they train.
MOST = 24


def check_trial_models(config: Campaign, trials: Sequence[Trial], *, call: bool = False) -> tuple[str, ...]:
    """Open the teacher of each label set, and train each distinct student for one step.

    Args:
        config: the campaign with the sweep.
        trials: its trials, whose settings have been checked.
        call: call a teacher that is a function; see `open_teacher_head`.

    Returns:
        Notes for the plan: trials that will fail, which does not stop the other ones, and trials that were not checked.

    Raises:
        DistillError: a teacher cannot be used.
        ConfigError: no student of any trial can be trained.
    """
    teachers = {key: check_teacher(own, call=call) for key, own in labelling(config, trials).items()}
    alike = _alike(trials)
    wrong, notes, failed = WrongTrials(), dict[str, None](), 0
    for same in alike[:MOST]:
        own = same[0].config
        try:
            notes |= dict.fromkeys(check_student(own, teachers[label_key(own)], call=call))
        except DistillError as error:
            failed += len(same)
            for trial in same:
                wrong.add(trial.name, error)
    if failed == len(trials):
        wrong.refuse(len(trials))
    late = sum(len(same) for same in alike[MOST:])
    return (
        *(f"this will fail, and stop no other trial: {line}" for line in wrong.lines()),
        *notes,
        *([f"the students of {late} trials were not built: they are checked when they train"] if late else []),
    )


def _alike(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Group the trials whose students are checked alike: their rates and epochs do not count."""
    found = dict[str, list[Trial]]()
    for trial in trials:
        student, training = trial.config.student, trial.config.student.training
        alike = {
            "labels": label_key(trial.config),
            "model": student.model.model_dump(mode="json"),
            "losses": {name: loss.model_dump(mode="json") for name, loss in student.losses.items()},
            "batches": [training.global_batch, training.micro_batch, training.micro_tokens, training.most_workers],
            "recomputed": training.activation_checkpointing,
        }
        found.setdefault(fingerprint(alike), []).append(trial)
    return list(found.values())
