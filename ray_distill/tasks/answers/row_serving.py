"""Serving of models that answer once a row.

Requests are read alike in every family; the answers are the family's own.
"""

from collections.abc import Mapping
from pathlib import Path

from ray_distill.config import Campaign
from ray_distill.tasks.facets import Kind, Serving

#: The file that decodes images in every stage.
_PIXELS = Path(__file__).parents[1] / "inputs" / "pixels.py"


def row_serving(answers: Path, *, outputs: Mapping[str, Kind]) -> Serving:
    """Return how ``row_requests.py`` reads and runs requests, and a family's file answers.

    Args:
        answers: the family's file; its ``columns`` turns logits into the columns of ``outputs``.
        outputs: see `Serving`.
    """
    return Serving(
        code=Path(__file__).with_name("row_requests.py"),
        parts={"answers": answers, "pixels": _PIXELS},
        outputs=outputs,
        requirements=("transformers", "torch", "safetensors", "numpy", "pillow"),
    )


def example(config: Campaign) -> None:
    """Return None: a model is shown rows of the test split."""
