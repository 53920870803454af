"""Models of readings: a teacher that is known beforehand, and a student to train."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ray_distill.models.core.model import ModelParts
from sensor_readings.inputs import Scale

WIDTH = 6
CLASSES = ("idle", "humming", "shaking")


class Network(nn.Module):
    """One hidden layer over the readings."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, readings: Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
        """Return logits ``[B, V]`` and two states, the readings and the hidden layer."""
        hidden = self.inner(readings).tanh()
        states = (readings, hidden) if output_hidden_states else None
        return SimpleNamespace(logits=self.head(hidden), hidden_states=states)


def teacher() -> ModelParts:
    """Build a teacher that adds up pairs of readings: the greatest sum names the class."""
    module = Network(WIDTH, len(CLASSES), len(CLASSES))
    with torch.no_grad():
        module.inner.weight.copy_(torch.eye(len(CLASSES)).repeat_interleave(WIDTH // len(CLASSES), dim=1) / 4)
        module.inner.bias.zero_()
        module.head.weight.copy_(4 * torch.eye(len(CLASSES)))
        module.head.bias.zero_()
    return ModelParts(module=module, processor=Scale(width=WIDTH), classes=CLASSES)


def student(classes: list[str], hidden: int = 8) -> ModelParts:
    """Build a student to train."""
    return ModelParts(module=Network(WIDTH, hidden, len(classes)), processor=Scale(width=WIDTH), classes=tuple(classes))
