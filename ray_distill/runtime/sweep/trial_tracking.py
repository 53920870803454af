"""Record a sweep's trials as nested runs: one run per trial, over any number of commands."""

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from ray_distill.artifacts import Efficiency
from ray_distill.errors import StorageError, TrainingError
from ray_distill.evaluation.sweep.compare import TrialResult
from ray_distill.runtime.core import console
from ray_distill.runtime.core.session import Session
from ray_distill.runtime.sweep.resolve_trials import ARM
from ray_distill.runtime.sweep.trial_worker import PlannedTrial
from ray_distill.storage import files
from ray_distill.storage.sealed import read_sealed, write_sealed
from ray_distill.students.telemetry.curves import CurveReader, Points
from ray_distill.tracking.base import Run


class TrialRuns:
    """Open runs of the running trials; runs that are open when the block ends get its status."""

    def __init__(self, session: Session, folder: str) -> None:
        """Create an empty set of runs; ``folder`` stores the runs' ids."""
        self._session, self._folder = session, folder
        self._open: dict[str, tuple[Run, ExitStack]] = {}
        self._curves: dict[str, CurveReader] = {}
        self._points: dict[str, Points] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, stack in self._open.values():
            stack.__exit__(kind, error, trace)
        self._open.clear()

    def begin(self, planned: PlannedTrial) -> None:
        """Open the trial's run, or reopen it: a trial that starts again continues its run."""
        if planned.key in self._open:
            return
        stack, trial = ExitStack(), planned.trial
        run = stack.enter_context(
            self._session.tracker.run(
                _name(planned),
                parent=self._session.parent.run_id,
                run_id=self._kept(planned.key).get("run_id"),
                tags={
                    "stage": "trial",
                    "trial": str(trial.number),
                    "campaign": self._session.config.campaign,
                    "plan": planned.key,
                },
            )
        )
        self._open[planned.key] = run, stack
        run.params(trial.changes)
        kept = self._kept(planned.key)
        known = kept.get("steps") if kept.get("run_id") == run.run_id else None
        self._curves[planned.key] = CurveReader(planned.job.output, known=known)
        self._points[planned.key] = Points(self._session.config.tracking.every)
        self._keep(planned.key, run)

    def record(self, planned: PlannedTrial) -> None:
        """Record `Points` of a trial's new steps; of several learning rates, under the rate's name.

        No step is recorded twice. After a kill, the run in the tracker may lack the steps of one call; the files have
        them.
        """
        run, curves = self._open[planned.key][0], self._curves[planned.key]
        try:
            found = curves.new()
        except StorageError as error:
            console.report(f"sweep: the curve of {planned.trial.name} cannot be read now: {error}")
            return
        if found:
            self._keep(planned.key, run)
        for one in found:
            rate = one.arm.removeprefix(ARM).strip("/")
            prefix = f"{rate}_" if rate else ""
            due = self._points[planned.key].of(one)
            run.metrics({f"{prefix}{name}": value for name, value in due.items()}, one.step)

    def end(self, planned: PlannedTrial, result: TrialResult) -> None:
        """Record the outcome of the trial and close its run."""
        run, stack = self._open.pop(planned.key)
        run.metrics(kept_metrics(result))
        run.tags({"verdict": result.verdict, **({"reason": result.reason} if result.reason else {})})
        error = TrainingError(result.reason) if result.verdict == "failed" else None
        stack.__exit__(None if error is None else type(error), error, None)
        self._keep(planned.key, run, verdict=result.verdict)

    def earlier(self, planned: PlannedTrial, result: TrialResult) -> None:
        """Record a trial that ended before this command, unless its run has the verdict already."""
        if self._kept(planned.key).get("verdict") != result.verdict:
            self.begin(planned)
            self.record(planned)
            self.end(planned, result)

    def measured(self, planned: PlannedTrial, efficiency: Efficiency | None, *, best: bool, on_frontier: bool) -> None:
        """Record frontier, best trial, size and speed, after all trials have ended."""
        known = self._kept(planned.key)["run_id"]
        with self._session.tracker.run(_name(planned), parent=self._session.parent.run_id, run_id=known) as run:
            run.tags({"frontier": str(on_frontier).lower(), "best": str(best).lower()})
            if efficiency is not None:
                run.metrics(
                    {
                        "parameters": float(efficiency.parameters),
                        "size_bytes": float(efficiency.bytes_on_disk),
                        "latency_ms_p50": efficiency.latency_ms_p50,
                        "latency_ms_p95": efficiency.latency_ms_p95,
                        "throughput_examples_per_second": efficiency.examples_per_second,
                    }
                )

    def run_id(self, key: str) -> str:
        """Return the id of the trial's run."""
        return str(self._kept(key)["run_id"])

    def _keep(self, key: str, run: Run, **more: str) -> None:
        """Store the id of a trial's run, and its recorded steps."""
        write_sealed(self._url(key), {"run_id": run.run_id, "steps": self._curves[key].known, **more})

    def _kept(self, key: str) -> dict[str, Any]:
        url = self._url(key)
        return read_sealed(url, "delete it, and the trial gets a new run") if files.exists(url) else {}

    def _url(self, key: str) -> str:
        return files.join(self._folder, f"{key}.json")


def kept_metrics(result: TrialResult) -> Mapping[str, float]:
    """Return the metrics of the weights kept; of a stopped trial, the metrics at its stop."""
    which = "best" if result.verdict == "finished" else "last"
    epoch = {} if result.epoch is None else {f"{which}_epoch": result.epoch}
    return {f"{which}_{name}": value for name, value in result.metrics.items()} | epoch


def _name(planned: PlannedTrial) -> str:
    """Return the run's name, which begins with the trial's number.

    Tables truncate long names at the end, where the names of a grid differ.
    """
    return f"{planned.trial.number} {planned.trial.name}"
