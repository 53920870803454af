"""Serving of classifiers: a label with its probability, and those of all classes."""

from pathlib import Path

from ray_distill.config import Campaign
from ray_distill.tasks.facets import Serving

SERVING = Serving(
    code=Path(__file__).with_name("answer_requests.py"),
    outputs={"label": "string", "probability": "double", "probabilities": "doubles"},
    requirements=("transformers", "torch", "safetensors", "numpy", "pillow"),
)


def example(config: Campaign) -> None:
    """Return None: a model is shown rows of the test split."""
