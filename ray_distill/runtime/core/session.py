"""Open a campaign for one command: its URLs, its finished stages, its costs and its tracker.

A finished stage has a file ``<output>/state/<stage>.json`` with the key of the stage's inputs and its result. A stage
whose key is unchanged is skipped; nothing else decides. ``<output>/state/costs`` has the cost of every attempt,
failed attempts included.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_distill.artifacts import Document
from ray_distill.config import Campaign, CostConfig, MixtureConfig
from ray_distill.config.identity import identity
from ray_distill.errors import ConfigError
from ray_distill.evaluation.measures.cost import Meter, StageCost, metered, stage_metrics
from ray_distill.fingerprint import fingerprint
from ray_distill.runtime.core import console
from ray_distill.runtime.core.at_work import working
from ray_distill.runtime.core.class_names import with_teacher_names
from ray_distill.runtime.core.lost_store import new_store_named
from ray_distill.storage import files
from ray_distill.storage.portable import located, movable, portable
from ray_distill.storage.sealed import read_document, read_sealed, write_sealed
from ray_distill.tasks.catalogue import get_task
from ray_distill.tracking.base import Registry, Run, Tracker
from ray_distill.tracking.open import open_tracker
from ray_distill.tracking.place import place_of
from ray_distill.tracking.relocate import relocate
from ray_distill.tracking.views import review_columns

#: Ways out of damaged files below ``state``.
_RUN_AGAIN = "delete it, and the stage is run again"
_NEW_RUN = "delete it, and a new run is opened in the tracker"
_COST_LOST = "delete it, and the cost of that attempt is not counted"


class _Attempt(Document):
    """The cost of one attempt at a stage."""

    started: float
    """Seconds since 1970."""
    cost: StageCost


@dataclass(frozen=True, kw_only=True)
class Session:
    """A campaign while a command works on it; the parent run is open in the tracker."""

    config: Campaign
    tracker: Tracker
    registry: Registry
    parent: Run
    state: str = "state"
    """Folder of finished stages, below the output; another folder for results that are not the campaign's own."""

    def url(self, *parts: str) -> str:
        """Return the URL of an artifact of the campaign."""
        return files.join(self.config.output_url, *parts)

    def done(self, stage: str, key: str) -> Any:
        """Return the result of a stage for inputs with this key; None if there is none."""
        found = self.last(stage)
        return found["result"] if found is not None and found["key"] == key else None

    def last(self, stage: str) -> dict[str, Any] | None:
        """Return ``{key, result}`` of the stage's latest finished run; None if there is none."""
        return last_result(self.config.output_url, stage, state=self.state)

    def finish(self, stage: str, key: str, result: Any) -> None:
        """Store a stage's result under the key of its inputs, with `portable` references."""
        kept = portable(result, self.config.output_url)
        write_sealed(self.url(self.state, f"{stage}.json"), {"stage": stage, "key": key, "result": kept})

    def costs(self) -> list[StageCost]:
        """Return `stage_costs` of the campaign."""
        return stage_costs(self.config)

    @contextmanager
    def stage(
        self, name: str, *, cores: float = 1, accelerators: float = 0, resumes: bool = False
    ) -> Iterator["Stage"]:
        """Run a stage in a nested run of the tracker; meter and store its cost, also if it fails.

        ``resumes``: reopen the nested run of an attempt that failed or was killed, so that its curves continue; only
        for stages that one command runs at a time.
        """
        started, unfinished = _now(), self.url(self.state, "unfinished", f"{name}.json")
        known = self._unfinished(unfinished) if resumes else None
        with self.tracker.run(name, parent=self.parent.run_id, run_id=known, tags={"stage": name}) as run:
            if resumes:
                write_sealed(unfinished, {"run_id": run.run_id, "parent": self.parent.run_id})
            try:
                with metered(name, cores=cores, accelerators=accelerators, prices=self.config.cost) as meter:
                    yield Stage(name=name, run=run, meter=meter)
            finally:
                run.tags({"campaign": self.config.campaign})
                run.metrics(stage_metrics(meter.cost))
                self.keep_cost(started, meter.cost)
        if resumes:
            files.delete(unfinished)

    def keep_cost(self, started: float, cost: StageCost) -> None:
        """Store the cost of an attempt at a stage; ``started`` in seconds since 1970."""
        attempt = _Attempt(started=started, cost=cost).to_dict()
        write_sealed(self.url("state", "costs", f"{cost.stage}-{uuid.uuid4().hex}.json"), attempt)

    def _unfinished(self, url: str) -> str | None:
        """Return the run that an earlier attempt under this parent run left unfinished."""
        left = read_sealed(url, _NEW_RUN) if files.exists(url) else {}
        return left["run_id"] if left.get("parent") == self.parent.run_id else None


def last_result(output: str, stage: str, *, state: str = "state") -> dict[str, Any] | None:
    """Return ``{key, result}`` of a stage's latest finished run; None if there is none.

    `Session.finish` writes it.

    Args:
        output: absolute URL of the campaign's output; references of the result that lie below it are made absolute.
        stage: the stage's name.
        state: as in `Session`.

    Raises:
        ConfigError: the file is of another stage, or not a result.
        StorageError: it was changed, or cannot be read.
    """
    url = files.join(output, state, f"{stage}.json")
    if not files.exists(url):
        return None
    found = read_sealed(url, _RUN_AGAIN)
    if not {"key", "result"} <= set(found) or found.get("stage", stage) != stage:
        raise ConfigError(f"{url} is not the result of a stage `{stage}`: {_RUN_AGAIN}")
    return {"key": found["key"], "result": located(found["result"], output)}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A running stage: its run in the tracker, and its meter."""

    name: str
    run: Run
    meter: Meter


@contextmanager
def open_session(config: Campaign, *, sweep: bool = False, shared: bool = False) -> Iterator[Session]:
    """Open the campaign for one command: its output, its tracker and its parent run.

    The parent run is the same for every command with this config; a sweep has a parent run of its own.

    Args:
        config: the campaign.
        sweep: open the parent run of the sweep.
        shared: whether another such command may work on the output at the same time.

    Raises:
        InUse: another command is at work on the output.
    """
    with working(config, shared=shared), new_store_named(config), _open(config, sweep=sweep) as session:
        yield session


@contextmanager
def _open(config: Campaign, *, sweep: bool) -> Iterator[Session]:
    config = with_teacher_names(absolute(config))
    place = place_of(config.tracking, campaign=config.campaign, output_url=config.output_url)
    if place is not None and not place.uri_from and relocate(place.uri):
        console.report("record: this output was moved or copied: its records refer to the artifacts beside them now")
    tracker, registry = open_tracker(place, spool=_spool(config), columns=review_columns(get_task(config.task).answers))
    console.report(f"record: {record_line(config)}")
    state = files.join(config.output_url, "state", f"parent-{parent_key(config, sweep=sweep)}.json")
    known = read_sealed(state, _NEW_RUN).get("run_id") if files.exists(state) else None
    tags = {"stage": "sweep" if sweep else "campaign", "task": config.task, "campaign": config.campaign}
    name, left_out = (f"{config.campaign} sweep", set()) if sweep else (config.campaign, {"sweep"})
    with tracker.run(name, run_id=known, tags=tags) as run:
        if known is None:
            write_sealed(state, {"run_id": run.run_id})
            run.params(config.model_dump(mode="json", by_alias=True, exclude={"tracking", "output"} | left_out))
        yield Session(config=config, tracker=tracker, registry=registry, parent=run)
    waiting = tracker.flush()
    if waiting:
        console.report(
            f"MLflow has not accepted {waiting} records yet: they wait in {_spool(config)}; the next command sends "
            "them",
            waiting=waiting,
        )


def record_line(config: Campaign) -> str:
    """Describe where the campaign's runs are recorded, and which setting decided it."""
    place = place_of(config.tracking, campaign=config.campaign, output_url=config.output_url)
    return "nothing, because tracking is off" if place is None else place.sentence


def stage_costs(config: Campaign) -> list[StageCost]:
    """Return the cost of every stage so far at today's prices, in the order of first attempts.

    The cost of a stage is the sum over its attempts.
    """
    found: dict[str, StageCost] = {}
    kept = files.list_files(files.join(config.output_url, "state", "costs"))
    attempts = [read_document(_Attempt, item.url, _COST_LOST) for item in kept]
    for attempt in sorted(attempts, key=lambda one: one.started):
        cost = _priced(attempt.cost, config.cost)
        before = found.get(cost.stage)
        found[cost.stage] = cost if before is None else _add(before, cost)
    return list(found.values())


def absolute(config: Campaign) -> Campaign:
    """Return the campaign with absolute local paths, valid for a process in any folder."""
    snapshot, labels, student = config.snapshot, config.labels, config.student
    teacher = labels.teacher.model_copy(update={"model": _model(labels.teacher.model)})
    model = student.model.model_copy(update={"model": student.model.model and _model(student.model.model)})
    return config.model_copy(
        update={
            "output": files.absolute(config.output_url),
            "snapshot": snapshot.with_sources(files.absolute),
            "labels": labels.model_copy(update={"store": files.absolute(config.store_url), "teacher": teacher}),
            "student": student.model_copy(
                update={
                    "model": model,
                    "mixture": student.mixture and _mixture(student.mixture),
                    "ceiling": student.ceiling and files.absolute(student.ceiling),
                }
            ),
        }
    )


def _mixture(mixture: MixtureConfig) -> MixtureConfig:
    return mixture.model_copy(
        update={
            "others": tuple(
                other.model_copy(update={"labels": files.absolute(other.labels)}) for other in mixture.others
            )
        }
    )


def _model(name: str) -> str:
    """Return the absolute path of a local checkpoint; a URL or ``module:function`` unchanged."""
    return files.absolute(name) if files.is_local(name) and Path(name).exists() else name


def parent_key(config: Campaign, *, sweep: bool = False) -> str:
    """Return the key of a campaign's or sweep's parent run, unique among the runs of one output."""
    settings = {"campaign": identity(config)}
    if sweep and config.sweep is not None:
        settings["sweep"] = identity(config.sweep)
    return fingerprint(movable(settings, config.output_url))[:12]


def _spool(config: Campaign) -> Path:
    """Return the folder of records that wait for the tracking server.

    It is inside a local output, else inside the current folder.
    """
    if files.is_local(config.output_url):
        return Path(files.absolute(config.output_url)) / "spool"
    return Path.cwd() / ".ray-distill" / "spool" / config.campaign


def _priced(cost: StageCost, prices: CostConfig) -> StageCost:
    """Return a cost at other prices: prices and currency may have changed since it was recorded."""
    money = cost.core_hours * prices.core_hour + cost.accelerator_hours * prices.accelerator_hour
    return cost.with_changes(money=money, currency=prices.currency)


def _add(before: StageCost, more: StageCost) -> StageCost:
    """Return the sum of two attempts at one stage."""
    first, second = dict(before), dict(more)
    summed = {name: first[name] + second[name] for name in first if name not in ("stage", "currency")}
    return StageCost(stage=before.stage, currency=before.currency, **summed)


def _now() -> float:
    import time

    return time.time()


def user() -> str:
    """Return the name of the user, for the decision chain."""
    return os.environ.get("USER") or os.environ.get("USERNAME") or "unknown"
