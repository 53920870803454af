"""The records of a moved output refer to the artifacts beside them; a foreign place of artifacts is left alone."""

import sqlite3
from contextlib import closing
from pathlib import Path

from ray_distill.tracking.relocate import relocate

OLD, FOREIGN = "file:///old%20place/out/mlartifacts", "s3://team/artifacts"


def _write(path: Path) -> str:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE experiments (artifact_location TEXT)")
        database.executemany("INSERT INTO experiments VALUES (?)", [(OLD,), (FOREIGN,)])
        database.execute("CREATE TABLE runs (artifact_uri TEXT)")
        database.executemany(
            "INSERT INTO runs VALUES (?)", [(f"{OLD}/1/artifacts",), (f"{OLD}2/1",), (f"{FOREIGN}/2",)]
        )
    return f"sqlite:///{path}"


def _read(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return [
            place
            for table in ("artifact_location FROM experiments", "artifact_uri FROM runs")
            for (place,) in database.execute(f"SELECT {table}")
        ]


def test_a_moved_database_names_the_artifacts_beside_it(tmp_path: Path) -> None:
    """Once: the second time nothing is left to do. A neighbour whose name begins alike is not changed."""
    path = tmp_path / "new place" / "mlflow.db"
    path.parent.mkdir()
    uri, here = _write(path), (path.parent / "mlartifacts").as_uri()
    assert relocate(uri)
    assert _read(path) == [here, FOREIGN, f"{here}/1/artifacts", f"{OLD}2/1", f"{FOREIGN}/2"]
    assert not relocate(uri)


def test_nothing_is_made_and_a_file_that_is_no_database_is_the_trackers_matter(tmp_path: Path) -> None:
    """A missing database is not created; a damaged one is met again, and reported, by what records."""
    assert not relocate(f"sqlite:///{tmp_path / 'none.db'}") and not (tmp_path / "none.db").exists()
    (tmp_path / "bad.db").write_bytes(b"not a database, but long enough to be read as one" * 30)
    assert not relocate(f"sqlite:///{tmp_path / 'bad.db'}")
