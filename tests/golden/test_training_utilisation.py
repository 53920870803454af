"""FLOPs of real steps: counted alike on every engine, and told as a share of a peak."""

from pathlib import Path
from typing import Any

import pytest

from ray_distill.students.loop.train_loop import take_step
from ray_distill.students.process_group import current_ranks
from ray_distill.students.telemetry.step_timer import StepMeter
from ray_distill.testing.gloo import run_gloo
from tests.labs import training as lab
from tests.labs.training import Lab

#: FLOPs a second of a device that there is not.
PEAK = 1e9


def flops_of(folder: str, training: dict[str, Any]) -> tuple[float, list[float]]:
    """FLOPs a token, as the second step tells them, and the losses of the first two."""
    trial, engine = lab.build(Lab(folder=folder, hidden=True, training=training))
    ranks = current_ranks()
    meter = StepMeter(world=ranks.world, peak=PEAK)
    made = [take_step(trial, engine, ranks, step, meter=meter)[0] for step in (0, 1)]
    assert "mfu" not in made[0]
    engine.close()
    flops = made[1]["mfu"] * PEAK * ranks.world / made[1]["tokens_per_second"]
    return flops, [values["loss"] for values in made]


def test_utilisation_is_told_from_the_second_step_on(tmp_path: Path) -> None:
    """A token of a BERT of 2 layers of width 32 takes between 6 FLOPs a matrix parameter and twice that, for padding
    and attention; counting changes no loss."""
    lab.write_model(tmp_path)
    flops, losses = flops_of(str(tmp_path), {})
    trial, engine = lab.build(Lab(folder=str(tmp_path), hidden=True))
    assert losses == [take_step(trial, engine, current_ranks(), step)[0]["loss"] for step in (0, 1)]
    matrices = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert 6 * matrices < flops < 12 * matrices


def several(folder: str) -> list[float]:
    """FLOPs a token by engine, on this rank's count of ranks."""
    ways: list[dict[str, Any]] = [{"engine": "torch"}, *({"engine": "deepspeed", "zero_stage": n} for n in (0, 1, 3))]
    return [flops_of(folder, way)[0] for way in ways]


@pytest.mark.golden
def test_engines_count_alike(tmp_path: Path) -> None:
    """Two ranks, ZeRO 0, 1 and 3 and plain torch: the same FLOPs a token, on both ranks."""
    lab.write_model(tmp_path)
    first, second = run_gloo(several, 2, str(tmp_path))
    assert first == pytest.approx([first[0]] * 4, rel=1e-9) and first[0] > 0
    assert first == pytest.approx(second, rel=1e-9)
