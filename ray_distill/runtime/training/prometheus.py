"""A running training as Prometheus metrics, through Ray: the agent of each node serves what its processes have set.

Every node tells its port as ``MetricsExportPort`` (``ray.nodes()``); ``ray start --metrics-export-port`` fixes it. As
they are scraped the names begin with ``ray_``; `infra/grafana/training.json` shows them. Imports little: see
`outcome_channel`.
"""

from collections.abc import Mapping
from typing import Any

from ray_distill.evaluation.measures.cost import StageCost

#: Gauge → what it says, and its tags beside ``campaign``. A process's gauges go with it.
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "distill_train_step": ("Optimizer steps done", ("arm",)),
    "distill_train_loss": ("Training loss; term: total or the name of one", ("arm", "term")),
    "distill_train_validation": ("Last result on the validation split, by metric", ("arm", "metric")),
    "distill_train_examples_per_second": ("Examples a second, all ranks", ("arm",)),
    "distill_train_tokens_per_second": ("Tokens a second, all ranks", ("arm",)),
    "distill_train_step_seconds": ("Seconds of the last step on the first rank, by part", ("arm", "part")),
    "distill_train_data_wait_ratio": ("Share of the last step spent waiting for data", ("arm",)),
    "distill_train_flops_utilisation_ratio": ("Share of the devices' peak FLOPs; kind: mfu or hfu", ("arm", "kind")),
    "distill_train_peak_memory_bytes": ("Most memory held; rank: its number, or max and min", ("arm", "rank")),
    "distill_train_core_hours": ("Core-hours reserved by this attempt", ()),
    "distill_train_accelerator_hours": ("Accelerator-hours reserved by this attempt", ()),
    "distill_train_money": ("What this attempt has cost at the configured prices", ("currency",)),
}
_PLAIN = {
    "examples_per_second": "distill_train_examples_per_second",
    "tokens_per_second": "distill_train_tokens_per_second",
    "data_wait": "distill_train_data_wait_ratio",
}
#: Metrics of a step that begin so → gauge, the tag that the rest of the name is, and the factor to its unit.
_BY_REST = (
    ("seconds_", "distill_train_step_seconds", "part", 1.0),
    ("peak_memory_gib_rank_", "distill_train_peak_memory_bytes", "rank", 2.0**30),
    ("peak_memory_gib_", "distill_train_peak_memory_bytes", "rank", 2.0**30),
    ("loss_", "distill_train_loss", "term", 1.0),
    ("validation_", "distill_train_validation", "metric", 1.0),
)


class TrainingGauges:
    """Sets the gauges of a campaign's training from the process it is made in; without Ray nothing comes of it."""

    def __init__(self, campaign: str) -> None:
        from ray.util.metrics import Gauge

        self._campaign = campaign
        self._gauges: dict[str, Any] = {
            name: Gauge(name, description=text, tag_keys=("campaign", *tags)) for name, (text, tags) in GAUGES.items()
        }

    def step(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Tell a step's metrics, by the names of the training loop; what has no gauge is left out."""
        for name, tags, value in gauged(step, values):
            self._gauges[name].set(value, tags={"campaign": self._campaign, "arm": arm, **tags})

    def cost(self, cost: StageCost) -> None:
        """Tell what the training has taken so far."""
        own = {"campaign": self._campaign}
        self._gauges["distill_train_core_hours"].set(cost.core_hours, tags=own)
        self._gauges["distill_train_accelerator_hours"].set(cost.accelerator_hours, tags=own)
        self._gauges["distill_train_money"].set(cost.money, tags={**own, "currency": cost.currency})


def gauged(step: int, values: Mapping[str, float]) -> list[tuple[str, dict[str, str], float]]:
    """Gauge, tags and value of everything in a step's metrics that has a gauge."""
    found: list[tuple[str, dict[str, str], float]] = [("distill_train_step", {}, float(step))]
    for name, value in values.items():
        if name in _PLAIN:
            found.append((_PLAIN[name], {}, value))
        elif name == "loss":
            found.append(("distill_train_loss", {"term": "total"}, value))
        elif name in ("mfu", "hfu"):
            found.append(("distill_train_flops_utilisation_ratio", {"kind": name}, value))
        else:
            found += [
                (gauge, {tag: name.removeprefix(prefix)}, value * factor)
                for prefix, gauge, tag, factor in _BY_REST
                if name.startswith(prefix)
            ][:1]
    return found
