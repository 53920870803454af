"""What can be saved of DeepSpeed's optimisers, told before the first step."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ray_distill.errors import TrainingError
from ray_distill.students.engines.portable_state import WEIGHT, WholeStateAccess
from ray_distill.students.engines.zero_state import loss_scale, set_loss_scale, zero_state_access
from ray_distill.students.process_group import Ranks

ALONE = Ranks(rank=0, world=1)


def test_an_optimiser_of_another_kind_is_refused_by_name() -> None:
    """DeepSpeed's fused half-precision optimiser holds flat masters that nothing maps to parameters."""
    with pytest.raises(
        TrainingError, match=r"checkpoints of DeepSpeed's SimpleNamespace are not supported.*zero_stage 1"
    ):
        zero_state_access(SimpleNamespace(fp32_groups_flat=[]), ALONE)


def test_half_precision_at_stage_0_is_saved_from_its_float32_copies() -> None:
    """The master weight is read and set, and the parameter that computes follows it."""
    half = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    master = torch.full((3,), 1.001)
    inner = torch.optim.AdamW([master])
    parts = zero_state_access(SimpleNamespace(fp16_groups=[[half]], fp32_groups=[[master]], optimizer=inner), ALONE)
    found = parts.read(half, WEIGHT)
    assert found is not None and torch.equal(found, master)
    parts.prepare(["exp_avg"], 4.0)
    parts.write(half, "exp_avg", torch.full((3,), 0.5))
    with torch.no_grad():
        parts.write(half, WEIGHT, torch.full((3,), 2.0))
        parts.finish()
    assert parts.step() == 4.0 and half.tolist() == [2.0, 2.0, 2.0]
    assert inner.state[master]["exp_avg"].tolist() == [0.5, 0.5, 0.5]


def test_a_plain_optimiser_is_its_own() -> None:
    """ZeRO 0 in float32."""
    assert isinstance(
        zero_state_access(torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]), ALONE), WholeStateAccess
    )


def test_the_loss_scale_goes_on() -> None:
    """What a dynamic scale depends on is read and set; an optimiser without one has none and takes none."""
    holder: Any = SimpleNamespace(loss_scaler=SimpleNamespace(cur_scale=512.0, cur_iter=7))
    other: Any = SimpleNamespace(loss_scaler=SimpleNamespace(cur_scale=1.0, cur_iter=0))
    set_loss_scale(other, loss_scale(holder))
    assert other.loss_scaler.cur_scale == 512.0 and other.loss_scaler.cur_iter == 7
    assert loss_scale(SimpleNamespace()) == {}
    set_loss_scale(SimpleNamespace(), {"cur_scale": 2.0})
