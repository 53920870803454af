"""Serving of classifiers: a label with its probability, and those of all classes."""

from pathlib import Path

from ray_distill.tasks.answers.row_serving import example, row_serving

__all__ = ["SERVING", "example"]

SERVING = row_serving(
    Path(__file__).with_name("answer_requests.py"),
    outputs={"label": "string", "probability": "double", "probabilities": "doubles"},
)
