"""Serving of language models: the text that they write."""

import json
from pathlib import Path

from ray_distill.config import Campaign
from ray_distill.tasks.facets import Serving

#: `answer_requests` has the same number: it is executed without this package, and imports nothing of it.
MAX_NEW_TOKENS = 128

SERVING = Serving(
    code=Path(__file__).with_name("answer_requests.py"),
    parts={"conversation": Path(__file__).parents[2] / "inputs" / "conversation.py"},
    outputs={"generated": "string"},
    params={"max_new_tokens": MAX_NEW_TOKENS},
    # Chat templates are written in jinja2.
    requirements=("transformers", "torch", "safetensors", "numpy", "pillow", "jinja2"),
)


def example(config: Campaign) -> list[str]:
    """Return a made-up text, because rows are long texts that people wrote.

    Rows leave the snapshot only where the configuration requires it.
    """
    if config.labels.teacher.language.format == "chat":
        return [json.dumps([{"role": "user", "content": "What is a student?"}])]
    return ["A student is"]
