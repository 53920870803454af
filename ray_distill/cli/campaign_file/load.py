"""Load a campaign's file, and report every mistake in it at once, with the line of each.

Mistakes that the configuration finds alone come with those that need the task: losses, metrics, arms, models. The slow
imports behind these are made only where something is wrong already; otherwise the command itself makes the checks.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ray_distill.config import Campaign
from ray_distill.config.load import checked, open_document
from ray_distill.config.reading.document import Document
from ray_distill.config.reading.mistakes import Reading, located, read
from ray_distill.errors import ConfigError, DistillError
from ray_distill.redact import hide, secrets_in


def load_campaign(path: str | Path, overrides: Sequence[str] = ()) -> Campaign:
    """Return the campaign of a YAML file with dotted overrides.

    Raises:
        ConfigError: all mistakes of the file, of which each line names the field, what was found and what is allowed.
    """
    document = open_document(path, overrides)
    hide(secrets_in(document.value))
    reading = read(document)
    if reading.mistakes:
        reading = _everything_wrong(document)
    return checked(reading, document.places, origin=str(path))


def refuse_unknown_names(config: Campaign) -> None:
    """Refuse metrics, arms and corruptions that a task of the catalogue does not have.

    Raises:
        ConfigError: the message has a line for each.
    """
    from ray_distill.promotion.rules import wrong_limits
    from ray_distill.tasks.catalogue import TASKS
    from ray_distill.tasks.known_names import unknown_names

    if config.task in TASKS:
        wrong = unknown_names(config, TASKS[config.task]) + wrong_limits(config.gate, config.task)
        if wrong:
            raise ConfigError("\n  ".join([f"{len(wrong)} wrong field(s)", *wrong]))


@contextmanager
def located_errors(path: str | Path, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Add lines of the campaign's file to the wrong fields that a command reports."""
    try:
        yield
    except ConfigError as error:
        heading, *lines = str(error).split("\n  ")
        if not lines:
            raise
        places = open_document(path, overrides).places
        shown = [line + located(line.partition(": ")[0], places) for line in lines]
        raise ConfigError("\n  ".join([heading, *shown])) from error


def _everything_wrong(document: Document) -> Reading:
    """Return a reading with the mistakes that only the task's own checks find."""
    reading = read(document, _loss_settings())
    if reading.config is None:
        return reading
    found: dict[str, str] = {}
    for line in _refused(reading.config):
        path, colon, text = line.partition(": ")
        if colon and not reading.concerns(path) and path not in reading.mistakes:
            found[path] = f"{found[path]}; {text}" if path in found else text
    return replace(reading, mistakes=reading.mistakes | found)


def _refused(config: Campaign) -> list[str]:
    from ray_distill.runtime.stages.preflight import check
    from ray_distill.tasks.catalogue import get_task

    try:
        get_task(config.task)
    except ConfigError as error:
        return [f"task: {error}"]
    try:
        check(config)
    except ConfigError as error:
        return str(error).split("\n  ")[1:]
    except DistillError:  # the command itself reports it, once the file is right
        return []
    return []


def _loss_settings() -> Mapping[str, Sequence[str]]:
    """Return the dotted paths of the settings of all losses, by the name of the setting."""
    from ray_distill.cli.campaign_file.schema import losses

    found: dict[str, list[str]] = {}
    for name, loss in losses().items():
        for setting in loss["properties"]:
            found.setdefault(setting, []).append(f"student.losses.{name}.{setting}")
    return found
