"""A student that notes every example it learns from, for `training_kills`: its ranks are processes of Ray's."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import distributed, nn

from ray_distill.models.core.model import ModelParts
from ray_distill.testing.models import tiny_text_processor, tiny_tokenizer

PAD = 0


def noting_student(classes: list[str], notes: str, pause: float) -> ModelParts:
    """A BERT of one layer.

    Args:
        classes: class names.
        notes: folder for the notes: a file a process, a line a micro-batch, with what torch was seeded with for the
            step (which tells the step and the rank), the number of ranks, and the tokens of each example.
        pause: seconds that a training pass takes at least, so that there is time to be killed.
    """
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        vocab_size=len(tiny_tokenizer()),
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = transformers.BertForSequenceClassification(config)

    def note(own: nn.Module, positional: Any, inputs: dict[str, Any]) -> None:
        if own.training:
            write(Path(notes), inputs["input_ids"])
            time.sleep(pause)

    module.register_forward_pre_hook(note, with_kwargs=True)
    return ModelParts(module=module, processor=tiny_text_processor(), classes=tuple(classes))


def write(notes: Path, tokens_BL: torch.Tensor) -> None:
    """Add a line; one write, so that a process that is killed leaves whole lines and at most one cut one."""
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    line = {
        "seed": torch.initial_seed(),
        "world": world,
        "time": time.time(),
        "rows": [[token for token in row if token != PAD] for row in tokens_BL.tolist()],
    }
    notes.mkdir(parents=True, exist_ok=True)
    with (notes / f"{os.getpid()}.jsonl").open("ab", buffering=0) as file:
        file.write((json.dumps(line) + "\n").encode())
