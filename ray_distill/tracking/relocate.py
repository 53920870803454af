"""Point the records of a moved or copied output at the artifacts that lie beside them."""

import logging
import sqlite3
from contextlib import closing

from ray_distill.tracking.sqlite_uri import sqlite_file

logger = logging.getLogger(__name__)

#: Columns of MLflow's tables with the places of artifacts, which are absolute.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
#: Folder of the artifacts, beside the database.
ARTIFACTS = "mlartifacts"


def relocate(uri: str) -> bool:
    """Rewrite the places of artifacts in the database of an output that was moved.

    Args:
        uri: ``sqlite:///`` and the database's path; one that does not exist is left alone.

    Returns:
        Whether anything was rewritten."""
    path = sqlite_file(uri)
    if path is None or not path.is_file():
        return False
    here = (path.parent / ARTIFACTS).as_uri()
    try:
        with closing(sqlite3.connect(path, timeout=30)) as database, database:
            known = {(table, column) for table, column in _PLACES if _has(database, table, column)}
            moved = [place for place in _homes(database, known) if place != here]
            for old in moved:
                for table, column in known:
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - names of `_PLACES`
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (here, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )
    except sqlite3.Error as error:  # the tracker meets it too, and keeps what it cannot record
        logger.warning("the records in %s could not be pointed at %s: %s", path, here, error)
        return False
    return bool(moved)


def _homes(database: sqlite3.Connection, known: set[tuple[str, str]]) -> list[str]:
    """Return the artifact folders of experiments that this package made."""
    if _PLACES[0] not in known:
        return []
    found = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    return [place for (place,) in found if place and place.startswith("file://") and place.endswith(f"/{ARTIFACTS}")]


def _has(database: sqlite3.Connection, table: str, column: str) -> bool:
    return any(row[1] == column for row in database.execute(f"PRAGMA table_info({table})"))
