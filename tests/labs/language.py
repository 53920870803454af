"""A tiny language-model campaign that can be learnt: made-up sentences, and a teacher trained on others of their kind.

Everything is a function of seeds.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional

from ray_distill.models.io.load import load_model
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.models import write_tiny_causal_model

SEED = 5
SPLITS = {"train": 0.7, "validation": 0.1, "calibration": 0.1, "test": 0.1}
WHO = ("the cat", "a dog", "my aunt", "the king", "no one", "the old clock")
DOES = ("sees", "eats", "hides", "paints", "forgets")
WHAT = ("a red ball", "the moon", "two plums", "the river", "an old song")


def sentences(rows: int, seed: int) -> list[str]:
    """Distinct texts of two to four sentences of a small grammar."""
    generator = np.random.default_rng(seed)
    made: dict[str, None] = {}
    while len(made) < rows:
        parts = [
            " ".join(str(generator.choice(words)) for words in (WHO, DOES, WHAT))
            for _ in range(int(generator.integers(2, 5)))
        ]
        made[". ".join(parts) + "."] = None
    return list(made)


def conversations(rows: int, seed: int) -> list[list[dict[str, str]]]:
    """Questions and answers of the same grammar, as OpenAI's API has them."""
    return [
        [
            {"role": "user", "content": text.partition(". ")[0] + "?"},
            {"role": "assistant", "content": text.partition(". ")[2]},
        ]
        for text in sentences(rows, seed)
    ]


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    """Write texts as JSONL."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def write_conversations(path: Path, chats: Sequence[Sequence[Mapping[str, str]]]) -> Path:
    """Write conversations as JSONL, nested, in a column ``messages``."""
    path.write_text("".join(json.dumps({"messages": list(chat)}) + "\n" for chat in chats), encoding="utf-8")
    return path


def write_teacher(folder: Path, steps: int = 80) -> Path:
    """Train a Llama of 2 layers on 300 texts of its own (some seconds) and write it as a checkpoint."""
    torch.set_num_threads(1)
    write_tiny_causal_model(folder, seed=1, max_position_embeddings=256)
    model, task = load_model(str(folder), task="causal_lm"), TASKS["causal_lm"]
    texts = sentences(300, seed=99)
    rows = pa.table(
        {"row_id": pa.array([at.to_bytes(16, "big") for at in range(len(texts))], pa.binary(16)), "text": texts}
    )
    encoded = task.inputs.encode(rows, model.processor)
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=5e-3)
    generator = np.random.default_rng(0)
    model.module.train()
    for _ in range(steps):
        batch = task.inputs.collate(encoded, generator.choice(len(texts), 16, replace=False))
        logits = model.module(**batch, use_cache=False).logits
        wanted = batch["input_ids"][:, 1:].masked_fill(batch["attention_mask"][:, 1:] == 0, -100)
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.module.save_pretrained(folder)
    return folder


def config_of(folder: Path, source: Path, teacher: Path, **changes: Any) -> dict[str, Any]:
    """A whole campaign as plain values; ``changes`` replace whole sections, or fields of them by dotted name."""
    value: dict[str, Any] = {
        "campaign": "tales",
        "task": "causal_lm",
        "seed": SEED,
        "output": str(folder / "out"),
        "snapshot": {"source": str(source), "splits": dict(SPLITS)},
        "labels": {
            "teacher": {"model": str(teacher)},
            "unit_rows": 32,
            "resources": {"batch": 8},
            "signal": {"estimator": "topk", "k": 16, "temperatures": [1], "encoding": "compact"},
        },
        "student": {
            "model": {"from": "teacher_layers", "keep": 1},
            "losses": {"soft": {"weight": 0.9}, "hard": {"weight": 0.1}},
            "training": {
                "epochs": 2,
                "global_batch": 16,
                "micro_batch": 8,
                "learning_rate": 3e-3,
                "engine": "torch",
                "evaluate_every": 10,
                "checkpoint_every": 10,
            },
        },
        "evaluation": {"bootstrap": 200, "latency_requests": 10},
        "gate": {"limits": {"nll": {"relative": 0.5}, "kl_from_teacher": None, "ece": None}, "beat": []},
    }
    for name, change in changes.items():
        *parents, last = name.split("__")
        section = value
        for parent in parents:
            section = section[parent]
        section[last] = change
    return value
