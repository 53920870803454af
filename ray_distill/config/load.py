"""Read and validate the one file of a campaign."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ray_distill.config.campaign import Campaign
from ray_distill.config.reading.document import MOST_DEPTH, Document, parse, read_document
from ray_distill.config.reading.mistakes import MOST_SHOWN, Reading, lines, read
from ray_distill.errors import ConfigError
from ray_distill.redact import HIDDEN, is_secret, redact


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> Campaign:
    """Read a campaign's YAML file and apply dotted overrides (``labels.signal.k=64``).

    Raises:
        ConfigError: every wrong field at once, each with what was found, what is allowed, and its line.
    """
    document = open_document(path, overrides)
    return checked(read(document), document.places, origin=str(path))


def open_document(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """Read a YAML file and apply overrides, without validating the fields.

    Raises:
        ConfigError: it is not a YAML mapping, or an override cannot be applied.
    """
    document = read_document(path)
    for override in overrides:
        _override(document, override)
    return document


def parse_config(value: dict[str, Any], origin: str = "config") -> Campaign:
    """Validate a campaign given as plain values; errors as `load_config`."""
    return checked(read(Document(value=value)), {}, origin=origin)


def checked(reading: Reading, places: Mapping[str, str], *, origin: str) -> Campaign:
    """Return the campaign of a reading without mistakes.

    Raises:
        ConfigError: there are some; the message has a line for each.
    """
    if reading.mistakes or reading.config is None:
        found = list(lines(reading.mistakes, places))
        more = [f"and {len(found) - MOST_SHOWN:,} more"] if len(found) > MOST_SHOWN else []
        raise ConfigError("\n  ".join([f"{origin}: {len(found)} wrong field(s)", *found[:MOST_SHOWN], *more]))
    return reading.config


def _override(document: Document, override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set needs name=value, found {override!r}")
    try:
        put(document.value, name, parse(text))
    except (yaml.YAMLError, ValueError) as error:
        shown = HIDDEN if is_secret(name) else repr(redact(text)[:80])
        problem = getattr(error, "problem", None) or (HIDDEN if is_secret(name) else error)
        raise ConfigError(f"--set {name}: {shown} is not a YAML value: {problem}") from error
    except ConfigError as error:
        raise ConfigError(f"--set {error}") from error
    for known in [path for path in document.places if path == name or path.startswith(f"{name}.")]:
        for noted in (document.places, document.written, document.mistakes):
            noted.pop(known, None)
    document.places[name] = "--set"
    document.written[name] = text


def put(value: dict[str, Any], path: str, item: Any) -> None:
    """Set what is at a dotted path of plain values; sections on the way are made.

    Raises:
        ConfigError: something on the way is not a section.
    """
    *parents, last = path.split(".")
    if len(parents) > MOST_DEPTH:
        raise ConfigError(f"{path[:40]}…: names more than {MOST_DEPTH} sections")
    for parent in parents:
        if value.get(parent) is None:
            value[parent] = {}
        value = value[parent]
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: {parent} is not a section")
    value[last] = item
