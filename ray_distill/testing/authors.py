"""A tiny language model that records the start of a batch and dies on a chosen prompt."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
import transformers

from ray_distill.models.core.model import ModelParts
from ray_distill.models.text.processors import text_processor
from ray_distill.testing.models import tiny_causal_tokenizer

MODEL = "ray_distill.testing.authors:tiny_author"


class TinyAuthor(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """Build a Llama of 2 layers that generates; its weights and fingerprint are fixed."""

    marks: str | None = None
    fault: int | None = None

    def generate(self, *arguments: Any, generation_config: Any = None, **named: Any) -> Any:
        """Generate after writing the process id to the file ``marks``; die at ``fault``."""
        if self.marks is not None:
            with Path(self.marks).open("a") as file:
                file.write(f"{os.getpid()}\n")
        if self.fault is not None and bool((named["input_ids"] == self.fault).any()):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(*arguments, generation_config=generation_config, **named)


def tiny_author(seed: int, marks: str | None = None, fault: str | None = None) -> ModelParts:
    """Build an author for ``module:function`` configs.

    Args:
        seed: of the weights.
        marks: a file that gets a line each time that it begins to write a batch.
        fault: a character; a prompt that has it kills the process.
    """
    tokenizer = tiny_causal_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = TinyAuthor(config)
    module.marks = marks
    module.fault = None if fault is None else int(tokenizer.convert_tokens_to_ids(fault))
    return ModelParts(module=module, processor=text_processor(tokenizer, 128), classes=())
