"""Choose where a campaign is recorded."""

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
    """Return the tracker and the registry of a campaign; nothing is connected yet.

    Args:
        config: ``tracking`` of the campaign.
        campaign: the campaign's name, the experiment's by default.
        output_url: where the campaign's artifacts go; a local one holds the default ``mlflow.db``.
        spool: local folder for records that wait while the server is away.
        columns: columns of the review table, see `views.DEFAULT_COLUMNS`.

    Raises:
        ConfigError: the URI is of no kind MLflow 3 has.
    """
    if not config.enabled or config.uri == "none":
        return NullTracker(), InMemoryRegistry()
    tracker = MlflowTracker(
        config.uri or default_uri(output_url), config.experiment or campaign, spool, columns=columns
    )
    return tracker, MlflowRegistry(tracker.uri)


def default_uri(output_url: str) -> str:
    """Return the tracking URI when none is configured: SQLite beside a local output, else in this folder."""
    local = output_url.removeprefix("file://")
    folder = Path.cwd() if "://" in local else Path(local).absolute()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    logger.info("tracking.uri is not set: runs are recorded in %s", uri)
    return uri
