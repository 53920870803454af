"""One command's hold on its campaign: where things lie, what is done already, and who records it.

What is done stands in ``<output>/state/<stage>.json``: the key of the stage's inputs and its result. A stage
whose key is unchanged is skipped; nothing else decides. Costs of every attempt, failed ones too, lie beside.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_distill.config import Campaign, CostConfig, MixtureConfig
from ray_distill.config.identity import identity
from ray_distill.errors import ConfigError
from ray_distill.evaluation.measures.cost import Meter, StageCost, metered, stage_metrics
from ray_distill.fingerprint import fingerprint
from ray_distill.runtime.core.console import say
from ray_distill.storage import files
from ray_distill.tasks.catalogue import get_task
from ray_distill.tracking.base import Registry, Run, Tracker
from ray_distill.tracking.open import open_tracker
from ray_distill.tracking.views import review_columns


@dataclass(frozen=True, kw_only=True)
class Session:
    """A campaign while a command works on it. The parent run is open in the tracker."""

    config: Campaign
    tracker: Tracker
    registry: Registry
    parent: Run
    state: str = "state"
    """Folder of what is done, below the output: another one for work whose results are not the campaign's own."""

    def url(self, *parts: str) -> str:
        """Where an artifact of the campaign lies."""
        return files.join(self.config.output_url, *parts)

    def done(self, stage: str, key: str) -> Any:
        """What a stage left when its inputs had this key; None if it has not been run with them."""
        found = self.last(stage)
        return found["result"] if found is not None and found["key"] == key else None

    def last(self, stage: str) -> dict[str, Any] | None:
        """``{key, result}`` of the stage's latest finished run; None if there is none."""
        url = self.url(self.state, f"{stage}.json")
        if not files.exists(url):
            return None
        found = files.read_json(url)
        if not isinstance(found, dict) or not {"key", "result"} <= set(found):
            raise ConfigError(f"{url} is not what a stage leaves behind: delete it, and the stage is run again")
        return found

    def finish(self, stage: str, key: str, result: Any) -> None:
        """Remember a stage's result under the key of its inputs."""
        files.write_json(self.url(self.state, f"{stage}.json"), {"key": key, "result": result})

    def costs(self) -> list[StageCost]:
        """What every stage has taken so far at today's prices, attempts added up, in the order of the first ones."""
        found: dict[str, StageCost] = {}
        attempts = [files.read_json(item.url) for item in files.list_files(self.url("state", "costs"))]
        for attempt in sorted(attempts, key=lambda value: value["started"]):
            cost = _priced(StageCost.from_dict(attempt["cost"]), self.config.cost)
            before = found.get(cost.stage)
            found[cost.stage] = cost if before is None else _add(before, cost)
        return list(found.values())

    @contextmanager
    def stage(
        self, name: str, *, cores: float = 1, accelerators: float = 0, resumes: bool = False
    ) -> Iterator["Stage"]:
        """Run a stage: a nested run in the tracker, its cost metered and kept whether it succeeds or not.

        ``resumes``: go on in the nested run of an attempt that did not end well, so that its curves continue; for
        stages that only one command works at a time.
        """
        started, unfinished = _now(), self.url(self.state, "unfinished", f"{name}.json")
        known = self._unfinished(unfinished) if resumes else None
        with self.tracker.run(name, parent=self.parent.run_id, run_id=known, tags={"stage": name}) as run:
            if resumes:
                files.write_json(unfinished, {"run_id": run.run_id, "parent": self.parent.run_id})
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
        """Keep what an attempt at a stage took; ``started`` in seconds since 1970."""
        attempt = {"started": started, "cost": cost.to_dict()}
        files.write_json(self.url("state", "costs", f"{cost.stage}-{uuid.uuid4().hex}.json"), attempt)

    def _unfinished(self, url: str) -> str | None:
        """The run that an earlier attempt of this parent's left unfinished."""
        left = files.read_json(url) if files.exists(url) else {}
        return left["run_id"] if left.get("parent") == self.parent.run_id else None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A running stage: its run in the tracker, and its meter."""

    name: str
    run: Run
    meter: Meter


@contextmanager
def session(config: Campaign, *, sweep: bool = False) -> Iterator[Session]:
    """Open the campaign: its tracker, and its parent run, which is the same for every command with this config; of a
    sweep, another than the campaign's."""
    config = absolute(config)
    tracker, registry = open_tracker(
        config.tracking,
        campaign=config.campaign,
        output_url=config.output_url,
        spool=_spool(config),
        columns=review_columns(get_task(config.task).answers),
    )
    state = files.join(config.output_url, "state", f"parent-{parent_key(config, sweep=sweep)}.json")
    known = files.read_json(state)["run_id"] if files.exists(state) else None
    tags = {"stage": "sweep" if sweep else "campaign", "task": config.task, "campaign": config.campaign}
    name, left_out = (f"{config.campaign} sweep", set()) if sweep else (config.campaign, {"sweep"})
    with tracker.run(name, run_id=known, tags=tags) as run:
        if known is None:
            files.write_json(state, {"run_id": run.run_id})
            run.params(config.model_dump(mode="json", by_alias=True, exclude={"tracking", "output"} | left_out))
        yield Session(config=config, tracker=tracker, registry=registry, parent=run)
    waiting = tracker.flush()
    if waiting:
        say(
            f"the tracking server is away: {waiting} records wait in {_spool(config)}, the next command sends them",
            waiting=waiting,
        )


def absolute(config: Campaign) -> Campaign:
    """The same campaign with absolute local paths, so that a process in another folder finds them."""
    snapshot, labels, student = config.snapshot, config.labels, config.student
    sources = (snapshot.source,) if isinstance(snapshot.source, str) else snapshot.source
    teacher = labels.teacher.model_copy(update={"model": _model(labels.teacher.model)})
    model = student.model.model_copy(update={"model": student.model.model and _model(student.model.model)})
    return config.model_copy(
        update={
            "output": files.absolute(config.output_url),
            "snapshot": snapshot.model_copy(
                update={
                    "source": tuple(files.absolute(url) for url in sources),
                    "exclude": tuple(files.absolute(url) for url in snapshot.exclude),
                }
            ),
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
    """A local checkpoint by its absolute path; a URL or ``module:function`` as it is."""
    return files.absolute(name) if files.is_local(name) and Path(name).exists() else name


def parent_key(config: Campaign, *, sweep: bool = False) -> str:
    """Return the key of the parent run of a campaign's results, or of its sweep's, among those of one output."""
    settings = {"campaign": identity(config)}
    if sweep and config.sweep is not None:
        settings["sweep"] = identity(config.sweep)
    return fingerprint(settings)[:12]


def _spool(config: Campaign) -> Path:
    """Where records wait for the tracking server: beside a local output, else in this folder."""
    if files.is_local(config.output_url):
        return Path(files.absolute(config.output_url)) / "spool"
    return Path.cwd() / ".ray-distill" / "spool" / config.campaign


def _priced(cost: StageCost, prices: CostConfig) -> StageCost:
    """What was taken, at other prices: they and their currency may have changed since."""
    money = cost.core_hours * prices.core_hour + cost.accelerator_hours * prices.accelerator_hour
    return cost.with_changes(money=money, currency=prices.currency)


def _add(before: StageCost, more: StageCost) -> StageCost:
    """Two attempts at one stage as one."""
    first, second = dict(before), dict(more)
    summed = {name: first[name] + second[name] for name in first if name not in ("stage", "currency")}
    return StageCost(stage=before.stage, currency=before.currency, **summed)


def _now() -> float:
    import time

    return time.time()


def user() -> str:
    """Who asked for this: for the decision chain."""
    return os.environ.get("USER") or os.environ.get("USERNAME") or "unknown"
