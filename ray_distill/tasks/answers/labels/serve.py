"""Serving of multi-label models: the labels that apply, and the probabilities of all."""

from pathlib import Path

from ray_distill.tasks.answers.row_serving import example, row_serving

__all__ = ["SERVING", "example"]

SERVING = row_serving(
    Path(__file__).with_name("answer_requests.py"), outputs={"labels": "strings", "probabilities": "doubles"}
)
