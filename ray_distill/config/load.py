"""Read and validate the one file of a campaign."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ray_distill.config.campaign import Campaign
from ray_distill.errors import ConfigError


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> Campaign:
    """Read a campaign's YAML file and apply dotted overrides (``labels.signal.k=64``).

    Raises:
        ConfigError: every wrong field at once, each with what was found and what is allowed.
    """
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must be a mapping of sections, found {type(value).__name__}")
    for override in overrides:
        _override(value, override)
    return parse_config(value, origin=str(path))


def parse_config(value: dict[str, Any], origin: str = "config") -> Campaign:
    """Validate a campaign given as plain values; errors as `load_config`."""
    try:
        return Campaign.model_validate(value)
    except ValidationError as error:
        # A list of wrong items is called too short as well: only an empty one is.
        lines = [_explain(item) for item in error.errors() if item["type"] != "too_short" or not item["input"]]
        raise ConfigError("\n  ".join([f"{origin}: {len(lines)} wrong field(s)", *lines])) from error


def _explain(item: Any) -> str:
    """Explain one wrong field in one line: its dotted name, the value found, the values allowed."""
    where = ".".join(str(part) for part in item["loc"]) or "(whole file)"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{where}: is required but missing"
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown field"
    if message[1:2].islower():
        message = message[0].lower() + message[1:]
    return f"{where}: {message}; found {repr(item['input'])[:80]}"


def _override(value: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set needs name=value, found {override!r}")
    try:
        put(value, name, yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {name}: {text!r} is not a YAML value: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"--set {error}") from error


def put(value: dict[str, Any], path: str, item: Any) -> None:
    """Set what is at a dotted path of plain values; sections on the way are made.

    Raises:
        ConfigError: something on the way is not a section.
    """
    *parents, last = path.split(".")
    for parent in parents:
        if value.get(parent) is None:
            value[parent] = {}
        value = value[parent]
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: {parent} is not a section")
    value[last] = item
