"""Convert training settings to DeepSpeed's; uses DeepSpeed's names without importing it."""

from typing import Any

from ray_distill.config import TrainingConfig
from ray_distill.errors import ConfigError


def deepspeed_settings(training: TrainingConfig, *, micro_batch: int, passes: int) -> dict[str, Any]:
    """Return the settings for ``deepspeed.initialize``.

    The raw block of the configuration is merged in last.

    Args:
        training: the training settings.
        micro_batch: examples a forward pass.
        passes: the greatest number of micro-batches a step on one rank.

    Raises:
        ConfigError: the configured offload needs a higher ZeRO stage.
    """
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": passes,
        "gradient_clipping": training.clip,
        "zero_optimization": {"stage": training.zero_stage, **_offload(training)},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
    }
    if training.precision != "fp32":
        settings[training.precision] = {"enabled": True}
    return merge(settings, training.deepspeed)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` updated recursively with ``over``; neither is changed."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _offload(training: TrainingConfig) -> dict[str, Any]:
    if training.offload == "none":
        return {}
    needed = 1 if training.offload == "optimizer" else 3
    if training.zero_stage < needed:
        raise ConfigError(
            f"student.training.offload {training.offload} needs zero_stage {needed} or more, "
            f"found {training.zero_stage}"
        )
    block: dict[str, Any] = {"offload_optimizer": {"device": "cpu"}}
    if training.offload == "all":
        block["offload_param"] = {"device": "cpu"}
    return block
