"""Convert between the paths of SQLite databases and their URIs, as SQLAlchemy reads them.

A ``?`` of a path would begin a query, and a ``%`` a quoted character: MLflow would open, or create, another file.
"""

from pathlib import Path
from typing import Any

PREFIX = "sqlite:///"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite URI; None for any other store, and for a database in memory."""
    if not uri.startswith(PREFIX):
        return None
    name = _url().make_url(uri).database if _special(uri) else uri.removeprefix(PREFIX)
    return Path(name) if name and name != ":memory:" else None


def sqlite_uri(path: Path) -> str:
    """Return the URI of a SQLite file."""
    if not _special(str(path)):
        return f"{PREFIX}{path}"
    return str(_url().URL.create("sqlite", database=str(path)).render_as_string()).replace("?", "%3F")


def absolute_uri(uri: str) -> str:
    """Return a URI whose SQLite file has an absolute path; any other URI unchanged."""
    path = sqlite_file(uri)
    if path is None:
        return uri
    _, mark, query = uri.partition("?")
    return f"{sqlite_uri(path.absolute())}{mark}{query}"


def _special(text: str) -> bool:
    return "%" in text or "?" in text


def _url() -> Any:
    """Import SQLAlchemy, a fifth of a second, for the few paths that need it."""
    from sqlalchemy.engine import url

    return url
