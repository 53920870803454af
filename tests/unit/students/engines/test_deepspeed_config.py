"""DeepSpeed's settings, made without importing it."""

import pytest

from ray_distill.config import TrainingConfig
from ray_distill.errors import ConfigError
from ray_distill.students.engines.deepspeed_config import deepspeed_settings, merge


def settings(**changes: object) -> dict[str, object]:
    """Settings of a training configuration with some changes."""
    return deepspeed_settings(TrainingConfig.model_validate(changes), micro_batch=4, passes=2)


def test_stage_precision_and_clip_arrive() -> None:
    """Every setting of ours has its place."""
    found = settings(zero_stage=2, precision="bf16", clip=0.5)
    assert found["zero_optimization"] == {"stage": 2}
    assert found["bf16"] == {"enabled": True} and "fp16" not in found
    assert found["gradient_clipping"] == 0.5 and found["train_micro_batch_size_per_gpu"] == 4


def test_the_raw_block_wins_mapping_by_mapping() -> None:
    """A raw setting changes its own leaf and leaves its neighbours."""
    raw = {"zero_optimization": {"overlap_comm": True}, "gradient_clipping": 9.0}
    found = settings(zero_stage=3, deepspeed=raw)
    assert found["zero_optimization"] == {"stage": 3, "overlap_comm": True}
    assert found["gradient_clipping"] == 9.0


def test_merge_changes_neither_side() -> None:
    """The result is new."""
    base, over = {"a": {"b": 1}}, {"a": {"c": 2}, "d": 3}
    assert merge(base, over) == {"a": {"b": 1, "c": 2}, "d": 3}
    assert base == {"a": {"b": 1}} and over == {"a": {"c": 2}, "d": 3}


def test_offload_names_the_stage_it_needs() -> None:
    """The optimizer can be offloaded from stage 1, parameters only at stage 3."""
    found = settings(offload="all", zero_stage=3)["zero_optimization"]
    assert found == {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    with pytest.raises(ConfigError, match="offload all needs zero_stage 3 or more, found 2"):
        settings(offload="all", zero_stage=2)
    with pytest.raises(ConfigError, match="offload optimizer needs zero_stage 1 or more, found 0"):
        settings(offload="optimizer", zero_stage=0)
