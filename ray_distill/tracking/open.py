"""Choose the tracker and the registry of a campaign."""

import logging
from pathlib import Path

from ray_distill.config import TrackingConfig
from ray_distill.tracking.base import Registry, Tracker
from ray_distill.tracking.mlflow_registry import MlflowRegistry
from ray_distill.tracking.mlflow_tracker import MlflowTracker
from ray_distill.tracking.none import InMemoryRegistry, NullTracker
from ray_distill.tracking.views import DEFAULT_COLUMNS

logger = logging.getLogger(__name__)


def open_tracker(
    config: TrackingConfig, *, campaign: str, output_url: str, spool: Path, columns: tuple[str, ...] = DEFAULT_COLUMNS
) -> tuple[Tracker, Registry]:
    """Return the tracker and the registry of a campaign; neither connects before its first use.

    Args:
        config: ``tracking`` of the campaign.
        campaign: the campaign's name, which is the default name of the experiment.
        output_url: folder of the campaign's artifacts; a local one contains the default ``mlflow.db``.
        spool: local folder for records that wait while the server is unavailable.
        columns: columns of the review table, see `views.DEFAULT_COLUMNS`.

    Raises:
        ConfigError: MLflow 3 does not support this kind of URI.
    """
    if not config.enabled or config.uri == "none":
        return NullTracker(), InMemoryRegistry()
    tracker = MlflowTracker(
        config.uri or default_uri(output_url), config.experiment or campaign, spool, columns=columns
    )
    return tracker, MlflowRegistry(tracker.uri)


def default_uri(output_url: str) -> str:
    """Return the default tracking URI: SQLite in a local output, else in the current folder."""
    local = output_url.removeprefix("file://")
    folder = Path.cwd() if "://" in local else Path(local).absolute()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    logger.info("tracking.uri is not set: runs are recorded in %s", uri)
    return uri
