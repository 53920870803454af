"""Which of a step's metrics become gauges; and that the dashboard asks for no others."""

import json
import re
from pathlib import Path

import pytest

from ray_distill.runtime.training.prometheus import GAUGES, gauged

DASHBOARD = json.loads((Path(__file__).parents[4] / "infra" / "grafana" / "training.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "value", "gauge", "tags", "told"),
    [
        ("loss", 2.0, "loss", {"term": "total"}, 2.0),
        ("loss_soft", 1.5, "loss", {"term": "soft"}, 1.5),
        ("validation_nll", 3.0, "validation", {"metric": "nll"}, 3.0),
        ("examples_per_second", 9.0, "examples_per_second", {}, 9.0),
        ("tokens_per_second", 90.0, "tokens_per_second", {}, 90.0),
        ("data_wait", 0.1, "data_wait_ratio", {}, 0.1),
        ("seconds_data", 0.2, "step_seconds", {"part": "data"}, 0.2),
        ("peak_memory_gib_rank_3", 0.5, "peak_memory_bytes", {"rank": "3"}, 2.0**29),
        ("peak_memory_gib_max", 2.0, "peak_memory_bytes", {"rank": "max"}, 2.0**31),
        ("mfu", 0.4, "flops_utilisation_ratio", {"kind": "mfu"}, 0.4),
    ],
)
def test_metrics_become_gauges_in_base_units(
    name: str, value: float, gauge: str, tags: dict[str, str], told: float
) -> None:
    """Each once, with exactly the tags that the gauge has."""
    assert gauged(7, {name: value}) == [("distill_train_step", {}, 7.0), (f"distill_train_{gauge}", tags, told)]
    assert set(GAUGES[f"distill_train_{gauge}"][1]) == {"arm", *tags}


def test_what_has_no_gauge_is_left_out() -> None:
    """The rate is MLflow's alone."""
    assert gauged(1, {"learning_rate": 1e-3}) == [("distill_train_step", {}, 1.0)]


def test_the_dashboard_shows_every_gauge_and_asks_for_nothing_else() -> None:
    """Names, and the labels that queries and legends use."""
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    targets = [target for panel in panels for target in panel["targets"]]
    used = set()
    for target in targets:
        (name,) = re.findall(r"ray_(\w+)\{", target["expr"])
        used.add(name)
        labels = {"campaign", *GAUGES[name][1]}
        assert set(re.findall(r"(\w+)(?:=~|!=|=)", target["expr"])) <= labels, target
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, target
    assert used == set(GAUGES) - {"distill_train_step"}
    asked = json.dumps(DASHBOARD["templating"])
    assert set(re.findall(r"ray_(distill_\w+)", asked)) == {"distill_train_step"}


def test_panels_do_not_lie_on_each_other() -> None:
    """Each square of the grid belongs to one panel at most, and none is wider than the page."""
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        squares = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not squares & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= squares
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
