"""Resolve where runs and models are recorded.

The campaign's settings come first, then MLflow's variables, then a local file.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray_distill.config import TrackingConfig
from ray_distill.config.judge import check_experiment_name, check_tracking_uri
from ray_distill.errors import ConfigError
from ray_distill.redact import redact
from ray_distill.tracking.sqlite_uri import absolute_uri, sqlite_uri

TRACKING, REGISTRY, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME"
#: Variables of MLflow's client that fluent runs follow, and this package does not.
_NOT_READ = ("MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Tracking store, registry and experiment of a campaign, and which setting decided each."""

    uri: str
    uri_from: str
    """Dotted field or variable; empty for the default."""
    registry_uri: str
    registry_from: str
    experiment: str
    experiment_from: str
    not_read: tuple[str, ...] = ()
    """Variables that are set and have no effect."""

    @property
    def sentence(self) -> str:
        """Describe the place in one line, without passwords."""
        parts = [
            f"{redact(self.uri)} ({self.uri_from or 'tracking.uri is not set'})",
            f"experiment {self.experiment} ({self.experiment_from or 'the name of the campaign'})",
        ]
        if self.registry_uri != self.uri:
            parts.append(f"models in {redact(self.registry_uri)} ({self.registry_from})")
        parts += [f"{name} is not read: set tracking.experiment" for name in self.not_read]
        return ", ".join(parts)


def place_of(
    config: TrackingConfig, *, campaign: str, output_url: str, environment: Mapping[str, str] = os.environ
) -> Place | None:
    """Return the place of a campaign's records; None if tracking is off.

    Args:
        config: ``tracking`` of the campaign; each field it sets takes precedence over the environment.
        campaign: the campaign's name, which is the default name of the experiment.
        output_url: folder of the campaign's artifacts; a local one contains the default ``mlflow.db``.
        environment: variables, which MLflow's client reads too.

    Raises:
        ConfigError: a variable has a value that MLflow 3 refuses; the message names it.
    """
    if not config.enabled or config.uri == "none":
        return None
    uri, uri_from = _first(config.uri, "tracking.uri", environment, TRACKING)
    registry, registry_from = _first(config.registry_uri, "tracking.registry_uri", environment, REGISTRY)
    experiment, experiment_from = _first(config.experiment, "tracking.experiment", environment, EXPERIMENT)
    try:
        uri = absolute_uri(check_tracking_uri(uri)) if uri else default_uri(output_url)
        registry = absolute_uri(check_tracking_uri(registry)) if registry else uri
        check_experiment_name(experiment or campaign)
    except ValueError as error:
        names = ", ".join(name for name in (uri_from, registry_from, experiment_from) if name)
        raise ConfigError(f"{names}: {error}") from error
    return Place(
        uri=uri,
        uri_from=uri_from,
        registry_uri=registry,
        registry_from=registry_from,
        experiment=experiment or campaign,
        experiment_from=experiment_from,
        not_read=() if experiment else tuple(name for name in _NOT_READ if environment.get(name)),
    )


def default_uri(output_url: str) -> str:
    """Return the default tracking URI: SQLite in a local output, else in the current folder."""
    local = output_url.removeprefix("file://")
    folder = Path.cwd() if "://" in local else Path(local).absolute()
    return sqlite_uri(folder / "mlflow.db")


def _first(given: str | None, field: str, environment: Mapping[str, str], name: str) -> tuple[str, str]:
    """Return the configured value, else the variable's, and the name of the one that counts."""
    if given:
        return given, field
    found = environment.get(name, "").strip()
    return found, name if found else ""
