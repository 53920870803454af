"""Name the way out of a label store that is damaged and has no copy: another store."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray_distill.config import Campaign
from ray_distill.errors import CorruptStore
from ray_distill.storage import files


@contextmanager
def new_store_named(config: Campaign) -> Iterator[None]:
    """Add to the error of a damaged label store how to go on where no copy can be restored."""
    store = files.absolute(config.store_url)
    try:
        yield
    except CorruptStore as error:
        if store not in str(error) or "labels.store" in str(error):
            raise
        raise CorruptStore(
            f"{error}. Without a copy, set labels.store to a new folder, such as {store}-2, and label again: what is "
            "damaged is not repaired"
        ) from error
