"""Build the configured engine; DeepSpeed is imported only if it is configured."""

from torch import nn

from ray_distill.config import TrainingConfig
from ray_distill.students.engines.engine import Engine
from ray_distill.students.engines.torch_engine import TorchEngine
from ray_distill.students.process_group import Ranks


def build_engine(module: nn.Module, training: TrainingConfig, ranks: Ranks, *, passes: int) -> Engine:
    """Build the configured engine around a bundle; ``passes`` is the most micro-batches a step."""
    if training.engine == "torch":
        return TorchEngine(module, training, ranks)
    from ray_distill.students.engines.deepspeed_engine import start_deepspeed

    return start_deepspeed(module, training, ranks, passes=passes)
