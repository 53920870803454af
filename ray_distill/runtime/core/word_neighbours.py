"""Open the teacher's embeddings for views that replace words by their neighbours."""

from ray_distill.config import Campaign
from ray_distill.errors import ConfigError, DistillError
from ray_distill.models.io.embedding_table import check_embeddings, read_neighbours
from ray_distill.snapshots.augment.kinds import Neighbours
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.view_kinds import needs_neighbours


def wrong_neighbours(config: Campaign) -> list[str]:
    """Return a sentence if views need embeddings of the teacher that cannot be read.

    No weights are read.
    """
    if not needs_neighbours(config, get_task(config.task)):
        return []
    try:
        check_embeddings(config.labels.teacher)
    except DistillError as error:
        return [_sentence(error)]
    return []


def open_neighbours(config: Campaign) -> Neighbours:
    """Return the neighbours of words in the teacher's embeddings.

    Raises:
        ConfigError: they cannot be read.
    """
    try:
        return read_neighbours(config.labels.teacher)
    except DistillError as error:
        raise ConfigError(_sentence(error)) from error


def _sentence(error: DistillError) -> str:
    return (
        f"snapshot.augment.kinds: neighbours of words need the teacher's token embeddings, and {error}; name other "
        "kinds for this teacher"
    )
