"""What a family of tasks answers: its metrics and limits, and the facets that serve the stages.

Everything here imports quickly: no torch. The facets are modules of the family's own folder, imported when first used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from ray_distill.config.judge import Limit
from ray_distill.tasks.metrics import MetricTable


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A family of answers: classes, tokens, labels…

    A facet is a module ``<package>.<facet>``; the protocols in `ray_distill.tasks.facets` say what each must have.
    Facets may import the layer they serve (``judge`` evaluation, ``learn`` students); nothing imports them by name.
    """

    name: str
    package: str
    """Where the facets lie, e.g. ``ray_distill.tasks.answers.classes``."""
    metrics: MetricTable
    headline: str
    """The metric by which models are told apart first."""
    limits: Mapping[str, Limit]
    """Limits of the gate where the configuration sets none, by metric."""
    robust: tuple[str, ...]
    """Metrics measured on corrupted inputs."""

    def facet(self, name: str) -> ModuleType:
        """Import one of the family's modules: ``model``, ``store``, ``learn``, ``judge``, ``page`` or ``serve``."""
        return import_module(f"{self.package}.{name}")
