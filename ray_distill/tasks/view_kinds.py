"""Choose the kinds of views that a campaign's rows get."""

from ray_distill.config import Campaign
from ray_distill.errors import ConfigError
from ray_distill.snapshots.augment.kinds import Chosen
from ray_distill.tasks.task import Task
from ray_distill.text import did_you_mean


def wrong_views(config: Campaign, task: Task) -> list[str]:
    """Return one sentence for each setting of ``snapshot.augment`` that the task refuses."""
    settings, known = config.snapshot.augment, task.inputs.views
    if settings is None:
        return []
    if task.answers.truth == "none":
        return [
            f"snapshot.augment: {config.task} learns the tokens of its rows, so that it would learn to write damaged "
            "texts; leave it out (further texts are written by the teacher: sequences)"
        ]
    if not known:
        return [f"snapshot.augment: {config.task} has no views of its inputs ({task.inputs.name}); leave it out"]
    named = () if settings.kinds == "auto" else settings.kinds
    return [
        f"snapshot.augment.kinds: {config.task} has no {name!r}; it has {', '.join(known)}{did_you_mean(name, known)}"
        for name in named
        if name not in known
    ]


def needs_neighbours(config: Campaign, task: Task) -> bool:
    """Return whether the campaign names a kind that replaces words by their neighbours."""
    settings, known = config.snapshot.augment, task.inputs.views
    if settings is None or settings.kinds == "auto":
        return False
    return any(name in known and known[name].of_neighbours is not None for name in settings.kinds)


def chosen_kinds(config: Campaign, task: Task) -> tuple[Chosen, ...]:
    """Return the kinds of views with their strengths, by name; none without views.

    Raises:
        ConfigError: the settings do not go with the task.
    """
    settings, known = config.snapshot.augment, task.inputs.views
    if settings is None:
        return ()
    if wrong := wrong_views(config, task):
        raise ConfigError(f"{len(wrong)} wrong field(s)\n  " + "\n  ".join(wrong))
    if settings.kinds == "auto":
        chosen = {name: kind.strength for name, kind in known.items() if kind.automatic}
    else:
        chosen = settings.kinds
    return tuple(Chosen(name=name, kind=known[name], strength=chosen[name]) for name in sorted(chosen))
