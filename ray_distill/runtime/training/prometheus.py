"""Export a running training as Prometheus metrics through Ray.

Ray's agent on each node serves the metrics of the node's processes. Every node publishes its port as
``MetricsExportPort`` (``ray.nodes()``); ``ray start --metrics-export-port`` fixes the port. Scraped names begin with
``ray_``; `infra/grafana/training.json` shows them. The module imports little: see `outcome_channel`.
"""

from collections.abc import Mapping
from typing import Any

from ray_distill.evaluation.measures.cost import StageCost

#: Gauge → its description, and its tags beside ``campaign``. Gauges disappear with their process.
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "distill_train_step": ("Optimizer steps done", ("arm",)),
    "distill_train_loss": ("Training loss; term: total or the name of one", ("arm", "term")),
    "distill_train_validation": ("Last result on the validation split, by metric", ("arm", "metric")),
    "distill_train_examples_per_second": ("Examples a second, all ranks", ("arm",)),
    "distill_train_tokens_per_second": ("Tokens a second, all ranks", ("arm",)),
    "distill_train_step_seconds": ("Seconds of the last step on the first rank, by part", ("arm", "part")),
    "distill_train_data_wait_ratio": ("Share of the last step spent waiting for data", ("arm",)),
    "distill_train_flops_utilisation_ratio": ("Share of the devices' peak FLOPs; kind: mfu or hfu", ("arm", "kind")),
    "distill_train_peak_memory_bytes": ("Peak memory; rank: its number, or max and min", ("arm", "rank")),
    "distill_train_core_hours": ("Core-hours reserved by this attempt", ()),
    "distill_train_accelerator_hours": ("Accelerator-hours reserved by this attempt", ()),
    "distill_train_money": ("Cost of this attempt at the configured prices", ("currency",)),
}
_PLAIN = {
    "examples_per_second": "distill_train_examples_per_second",
    "tokens_per_second": "distill_train_tokens_per_second",
    "data_wait": "distill_train_data_wait_ratio",
}
#: Prefix of a step's metrics → gauge, the tag whose value is the rest of the name, and the factor to the gauge's unit.
_BY_REST = (
    ("seconds_", "distill_train_step_seconds", "part", 1.0),
    ("peak_memory_gib_rank_", "distill_train_peak_memory_bytes", "rank", 2.0**30),
    ("peak_memory_gib_", "distill_train_peak_memory_bytes", "rank", 2.0**30),
    ("loss_", "distill_train_loss", "term", 1.0),
    ("validation_", "distill_train_validation", "metric", 1.0),
)


class TrainingGauges:
    """Set the gauges of a campaign's training from this process; no effect without Ray."""

    def __init__(self, campaign: str) -> None:
        from ray.util.metrics import Gauge

        self._campaign = campaign
        self._gauges: dict[str, Any] = {
            name: Gauge(name, description=text, tag_keys=("campaign", *tags)) for name, (text, tags) in GAUGES.items()
        }

    def step(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Set the gauges of a step's metrics, by the training loop's names; ignore other metrics."""
        for name, tags, value in gauged(step, values):
            self._gauges[name].set(value, tags={"campaign": self._campaign, "arm": arm, **tags})

    def cost(self, cost: StageCost) -> None:
        """Set the gauges of the training's cost so far."""
        own = {"campaign": self._campaign}
        self._gauges["distill_train_core_hours"].set(cost.core_hours, tags=own)
        self._gauges["distill_train_accelerator_hours"].set(cost.accelerator_hours, tags=own)
        self._gauges["distill_train_money"].set(cost.money, tags={**own, "currency": cost.currency})


def gauged(step: int, values: Mapping[str, float]) -> list[tuple[str, dict[str, str], float]]:
    """Return gauge, tags and value of each of a step's metrics that has a gauge."""
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
