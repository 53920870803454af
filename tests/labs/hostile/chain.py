"""Points 2 and 3: the registry and its alias follow the chain, and every advice can be followed."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing

from tests.labs.hostile.damage import DAMAGES, damaged
from tests.labs.hostile.ground import Ran, Site, run
from tests.labs.hostile.tries import Try

CHAIN = "promotion/decisions/log/*.json"


def _sql(*statements: str) -> Callable[[Site], None]:
    """Return a disturbance: change MLflow's database, as somebody does in its page or by hand."""

    def change(site: Site) -> None:
        with closing(sqlite3.connect(site.output / "mlflow.db")) as database, database:
            for statement in statements:
                database.execute(statement)

    return change


def _alias(site: Site) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(site.output / "mlflow.db")) as database:
        return database.execute("SELECT alias, version FROM registered_model_aliases").fetchall()


def _points_at(version: int) -> Callable[[Site, Ran], None]:
    def check(site: Site, ran: Ran) -> None:
        assert _alias(site) == [("champion", version)], _alias(site)

    return check


def _forged_verdict(site: Site) -> None:
    path = site.one(CHAIN)
    value = json.loads(path.read_text(encoding="utf-8"))
    value["decision"]["verdict"] = "REJECT"
    path.write_text(json.dumps(value), encoding="utf-8")


def _decided_twice(site: Site) -> None:
    """Decide about the student once more, by looser limits."""
    site.change(gate__limits={"accuracy": {"min": 0.05}, "ece": None})
    ran = run(["promote", "campaign.yaml"], site.root)
    assert ran.status == 0, ran.stderr


def _first_decision_lost(site: Site) -> None:
    _decided_twice(site)
    min(site.output.glob(CHAIN)).unlink()


def _last_decision_lost(site: Site) -> None:
    _decided_twice(site)
    max(site.output.glob(CHAIN)).unlink()


_DELETED = "DELETE FROM registered_model_aliases"
_FOREIGN = (
    "INSERT INTO model_versions (name, version, creation_time, last_updated_time, current_stage, source, status) "
    "SELECT name, 9, creation_time, last_updated_time, current_stage, source, status FROM model_versions LIMIT 1"
)
_MOVED = "UPDATE registered_model_aliases SET version = 9"
_NO_VERSION = ("DELETE FROM registered_model_aliases", "DELETE FROM model_version_tags", "DELETE FROM model_versions")
_NO_MODEL = (*_NO_VERSION, "DELETE FROM registered_model_tags", "DELETE FROM registered_models")

VERIFY = ("promote", "{config}", "--verify")
PROMOTE = ("promote", "{config}")

TRIES = (
    *(
        Try(
            point=3,
            name=f"an entry of the chain: {how}, then {' '.join(command[0::2])}",
            do=damaged(CHAIN, damage),
            command=command,
            says="decisions|chain",
        )
        for how, damage in DAMAGES.items()
        for command in (PROMOTE, VERIFY)
    ),
    Try(point=3, name="a verdict forged in the chain", do=_forged_verdict, command=VERIFY, says="decisions"),
    Try(point=3, name="the first of two decisions lost", do=_first_decision_lost, command=VERIFY, says="decisions"),
    Try(point=3, name="the last of two decisions lost", do=_last_decision_lost, command=VERIFY, says="decisions"),
    Try(
        point=3,
        name="the alias deleted, then promote",
        do=_sql(_DELETED),
        command=PROMOTE,
        status=0,
        says="named no version.*it names version 1 now",
        check=_points_at(1),
    ),
    Try(
        point=3,
        name="the alias deleted, then promote --verify",
        do=_sql(_DELETED),
        command=VERIFY,
        status=0,
        says="named no version",
        check=_points_at(1),
    ),
    Try(
        point=3,
        name="the alias moved to a foreign version, then promote, which reports it",
        do=_sql(_FOREIGN, _MOVED),
        command=PROMOTE,
        status=0,
        says="which no campaign registered.*promote --verify",
        check=_points_at(9),
    ),
    Try(
        point=3,
        name="the alias moved to a foreign version, then promote --verify, which repairs it",
        do=_sql(_FOREIGN, _MOVED),
        command=VERIFY,
        status=0,
        says="it names version 1 now",
        check=_points_at(1),
    ),
    *(
        Try(
            point=3,
            name=f"{what} deleted from the registry, then {' '.join(command[0::2])}",
            do=_sql(*statements),
            command=command,
            status=0,
            says="registered again",
            check=_points_at(1),
        )
        for what, statements in (("the version", _NO_VERSION), ("the model", _NO_MODEL))
        for command in (PROMOTE, VERIFY)
    ),
    Try(
        point=2,
        name="promote again, with looser limits",
        command=("promote", "{config}", "--set", "gate.limits.accuracy.min=0.05"),
        status=0,
        says="PROMOTE",
        check=_points_at(2),
    ),
    Try(
        point=2,
        name="evaluate again after a promotion of its own student",
        command=("evaluate", "{config}"),
        status=0,
        says="already judged",
    ),
    Try(
        point=2,
        name="run again after everything is done",
        command=("run", "{config}"),
        status=0,
        says="already decided",
    ),
    *(
        Try(
            point=2,
            name=f"the result of the stage {stage}: {how}, then run",
            do=damaged(f"state/{stage}.json", damage),
            command=("run", "{config}"),
            status=status,
            says="already decided|PROMOTE" if status == 0 else rf"{stage}\.json.*(delete|restore)",
            may_change=r"state/snapshot\.json",  # the source was copied, so `run` reads it again
        )
        for stage in ("evaluate", "promote")
        for how, damage, status in (
            ("cut", DAMAGES["cut"], 1),
            ("emptied", DAMAGES["emptied"], 1),
            ("deleted", DAMAGES["deleted"], 0),
        )
    ),
)
