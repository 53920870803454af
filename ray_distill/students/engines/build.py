"""Which engine trains a bundle; DeepSpeed is imported only where it is asked for."""

from torch import nn

from ray_distill.config import TrainingConfig
from ray_distill.students.engines.engine import Engine
from ray_distill.students.engines.torch_engine import TorchEngine
from ray_distill.students.process_group import Ranks


def build_engine(module: nn.Module, training: TrainingConfig, ranks: Ranks, *, passes: int) -> Engine:
    """The configured engine around a bundle; ``passes`` is the greatest number of micro-batches a step."""
    if training.engine == "torch":
        return TorchEngine(module, training, ranks)
    from ray_distill.students.engines.deepspeed_engine import start_deepspeed

    return start_deepspeed(module, training, ranks, passes=passes)
