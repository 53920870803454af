"""A family of answers: its metrics and limits, and the facets that the stages use.

Everything here imports quickly: no torch. The facets are modules of the family's own folder, imported when first used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import cast

from ray_distill.config import Campaign
from ray_distill.config.judge import Limit
from ray_distill.snapshots.manifest import Truth
from ray_distill.tasks.facets import JudgeFacet, ModelFacet, RefuseFacet, ServeFacet, StoreFacet
from ray_distill.tasks.metrics import EFFICIENCY, Metric, MetricTable


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A family of answers: classes, tokens, labels…

    A facet is a module ``<package>.<facet>``; the protocols in `ray_distill.tasks.facets` define what each must have.
    Facets may import the layer they serve (``judge`` evaluation, ``learn`` students); nothing imports them by name.
    """

    name: str
    package: str
    """Package of the facets, e.g. ``ray_distill.tasks.answers.classes``."""
    truth: Truth = "class"
    """How a snapshot reads its labels: one class a row, a set of classes (``classes``), or not at all (``none``),
    because the truth follows from the input."""
    rows: str
    """The units that quality is measured over, as a plural noun: what ``n`` of an estimate counts."""
    metrics: MetricTable
    """Metrics of quality."""
    efficiency: MetricTable = EFFICIENCY
    """Metrics of size, speed and cost."""
    benchmarks: MetricTable = MetricTable()
    """Metrics of benchmarks, whose names are only known when they have run."""
    headline: str
    """The metric by which models are compared first."""
    spread: float = 0.3
    """Standard deviation of one row's difference in the headline metric, student minus teacher, that plans assume
    before anything is measured: about the mean of the project's golden runs, which range from half of it to twice."""
    beside: tuple[str, ...]
    """Metrics shown next to the headline where there is little room: terminal, a run's description, MLflow's table."""
    calibration: str = ""
    """The metric of how far probabilities are from frequencies; empty where the family has none."""
    limits: Mapping[str, Limit]
    """Limits of the gate where the configuration sets none, by metric."""
    robust: tuple[str, ...]
    """Metrics measured on corrupted inputs."""

    def find(self, name: str) -> Metric | None:
        """Return the metric of this name, of whichever table; see `MetricTable.find`."""
        tables = (self.metrics, self.efficiency, self.benchmarks)
        return next((found for table in tables if (found := table.find(name)) is not None), None)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all metrics, patterns included."""
        return self.metrics.names + self.efficiency.names + self.benchmarks.names

    @property
    def brief(self) -> tuple[Metric, ...]:
        """Metrics of quality that are shown where there is little room, the headline first."""
        return tuple(self.metrics[name] for name in (self.headline, *self.beside))

    def reads_labels(self) -> bool:
        """Return whether rows have labels of named classes."""
        return self.truth != "none"

    def is_labelled(self, rows: int) -> bool:
        """Return whether a split with so many labelled rows has truths to learn from."""
        return rows > 0 or not self.reads_labels()

    def facet(self, name: str) -> ModuleType:
        """Import one of the family's modules: ``model``, ``store``, ``learn``, ``judge`` and others."""
        return import_module(f"{self.package}.{name}")

    @property
    def model(self) -> ModelFacet:
        """Import what loads, runs and builds models."""
        return cast(ModelFacet, self.facet("model"))

    @property
    def store(self) -> StoreFacet:
        """Import what labelling needs."""
        return cast(StoreFacet, self.facet("store"))

    @property
    def serve(self) -> ServeFacet:
        """Import what tracking needs to log a model that can be served."""
        return cast(ServeFacet, self.facet("serve"))

    @property
    def judge(self) -> JudgeFacet:
        """Import what evaluation needs."""
        return cast(JudgeFacet, self.facet("judge"))

    def refuse(self, config: Campaign) -> list[str]:
        """List the settings that the family cannot serve."""
        return cast(RefuseFacet, self.facet("refuse")).refuse(config)
