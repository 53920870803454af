"""Open the tracker and the registry of a campaign."""

from pathlib import Path

from ray_distill.tracking.base import Registry, Tracker
from ray_distill.tracking.mlflow_registry import MlflowRegistry
from ray_distill.tracking.mlflow_tracker import MlflowTracker
from ray_distill.tracking.none import InMemoryRegistry, NullTracker
from ray_distill.tracking.place import Place
from ray_distill.tracking.views import DEFAULT_COLUMNS


def open_tracker(
    place: Place | None, *, spool: Path, columns: tuple[str, ...] = DEFAULT_COLUMNS
) -> tuple[Tracker, Registry]:
    """Return the tracker and the registry of a place; neither connects before its first use.

    Args:
        place: see `place_of`; None if tracking is off.
        spool: local folder for records that wait while the server is unavailable.
        columns: columns of the review table, see `views.DEFAULT_COLUMNS`.
    """
    if place is None:
        return NullTracker(), InMemoryRegistry()
    tracker = MlflowTracker(place.uri, place.experiment, spool, columns=columns)
    return tracker, MlflowRegistry(place.uri, place.registry_uri)
