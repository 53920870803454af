"""Point 8: a campaign's folder that is copied or moved refers to nothing outside itself."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing

from tests.labs.hostile.ground import STAGES, Ran, Site
from tests.labs.hostile.tries import Try


def _refers_to_itself(site: Site, ran: Ran) -> None:
    """Assert that no document of the output, and no place in MLflow's database, names another output."""
    for path in (*site.output.glob("state/*.json"), *site.output.glob("promotion/**/*.json")):
        text = path.read_text(encoding="utf-8")
        assert "made/out" not in text, path
        json.loads(text)
    with closing(sqlite3.connect(site.output / "mlflow.db")) as database:
        for (place,) in database.execute(
            "SELECT artifact_uri FROM runs UNION SELECT artifact_location FROM experiments"
        ):
            if place.startswith("file:") and not place.endswith("/0"):
                assert place.startswith(site.output.as_uri()), place


def _deeper(site: Site) -> None:
    (site.root / "a" / "b").mkdir(parents=True)
    shutil.move(site.output, site.root / "a" / "b" / "out")
    site.change(output="a/b/out")


def _linked(site: Site) -> None:
    site.output.rename(site.root / "real")
    site.output.symlink_to(site.root / "real")


def _renamed_output(name: str) -> Callable[[Site], None]:
    def rename(site: Site) -> None:
        site.output.rename(site.root / name)
        site.change(output=name)

    return rename


TRIES = (
    *(
        Try(
            point=8,
            name=f"copied after {stage}, then {command}",
            command=(command, "{config}"),
            status=0,
            stage=stage,
            check=_refers_to_itself,
        )
        for stage, command in zip(STAGES[2:4], STAGES[3:], strict=True)
    ),
    Try(
        point=8,
        name="copied after everything, then run: nothing is done again",
        command=("run", "{config}"),
        status=0,
        says="trained already(.|\n)*already judged(.|\n)*already decided",
        check=_refers_to_itself,
    ),
    Try(
        point=8,
        name="copied after everything, then promote --verify",
        command=("promote", "{config}", "--verify"),
        status=0,
        check=_refers_to_itself,
    ),
    *(
        Try(
            point=8,
            name=f"the output renamed to {name!r}, then run",
            do=_renamed_output(name),
            command=("run", "{config}"),
            status=0,
            says="trained already(.|\n)*already judged(.|\n)*already decided",
        )
        for name in ("other", "with space", "prozent%20", "ünïcode", "a'quote", "hash#tag", "semi;colon", "x" * 120)
    ),
    Try(
        point=8,
        name="the output moved two folders down, then run",
        do=_deeper,
        command=("run", "{config}"),
        status=0,
        says="trained already",
    ),
    Try(
        point=8,
        name="the output behind a symbolic link, then run",
        do=_linked,
        command=("run", "{config}"),
        status=0,
        says="already decided",
    ),
    Try(
        point=8,
        name="the report's file in the copy, given by its path",
        command=("promote", "{config}", "--report", "{report}"),
        status=0,
        says="PROMOTE",
    ),
)
