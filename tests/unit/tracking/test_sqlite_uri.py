"""Paths of SQLite databases and their URIs: SQLAlchemy opens the very file."""

from pathlib import Path

import pytest
from sqlalchemy import create_engine

from ray_distill.tracking.sqlite_uri import absolute_uri, sqlite_file, sqlite_uri


@pytest.mark.parametrize("name", ["plain", "two words", "100%25 %s", "a#b?c=d", "p%20q", "ü–漢", "a@b:c", "new\nline"])
def test_a_database_lies_where_its_path_says(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "mlflow.db"
    path.parent.mkdir()
    uri = sqlite_uri(path)
    with create_engine(uri).connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
    assert [item for item in tmp_path.rglob("*") if item.is_file()] == [path]
    assert sqlite_file(uri) == path


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////a/b.db", Path("/a/b.db")),
        ("sqlite:///b.db?timeout=9", Path("b.db")),
        ("sqlite:///a%20b.db", Path("a b.db")),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("http://server/sqlite:///x", None),
    ],
)
def test_the_file_of_a_uri(uri: str, path: Path | None) -> None:
    assert sqlite_file(uri) == path


def test_a_relative_database_is_one_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "50%"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert sqlite_file(absolute_uri("sqlite:///x.db?timeout=9")) == folder / "x.db"
    assert absolute_uri("sqlite:///x.db?timeout=9").endswith("?timeout=9")
    assert absolute_uri("http://server") == "http://server"
