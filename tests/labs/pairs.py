"""A tiny sequence-to-sequence campaign that can be learnt: words, and the same words spelt backwards with a mark.

Everything is a function of seeds.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional

from ray_distill.models.io.load import load_model
from ray_distill.snapshots.pairs import pair_text
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.models import write_tiny_seq2seq_model

SEED = 5
SPLITS = {"train": 0.7, "validation": 0.1, "calibration": 0.1, "test": 0.1}

Pair = tuple[str, str | None]


def pairs(rows: int, seed: int) -> list[Pair]:
    """Distinct words of three to six letters a to h, and what is written of them: their letters, doubled vowels."""
    generator = np.random.default_rng(seed)
    made: dict[str, Pair] = {}
    while len(made) < rows:
        word = "".join(generator.choice(list("abcdefgh"), int(generator.integers(3, 7))))
        made[word] = word, word.replace("a", "aa").replace("e", "ee") + "."
    return list(made.values())


def write_pairs(path: Path, rows: Sequence[Pair]) -> Path:
    """Write pairs as JSONL with the columns ``article`` and ``summary``."""
    path.write_text(
        "".join(json.dumps({"article": source, "summary": target}) + "\n" for source, target in rows), encoding="utf-8"
    )
    return path


def table_of(rows: Sequence[Pair]) -> pa.Table:
    """Pairs as rows of a snapshot."""
    ids = pa.array([at.to_bytes(16, "big") for at in range(len(rows))], pa.binary(16))
    return pa.table({"row_id": ids, "text": [pair_text(*row) for row in rows]})


def write_teacher(folder: Path, steps: int = 80) -> Path:
    """Train a T5 of 2 + 2 layers on 300 pairs of its own (some seconds) and write it as a checkpoint."""
    torch.set_num_threads(1)
    write_tiny_seq2seq_model(folder, seed=1, dropout_rate=0.0)
    model, task = load_model(str(folder), task="seq2seq"), TASKS["seq2seq"]
    encoded = task.inputs.encode(table_of(pairs(300, seed=99)), model.processor)
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=5e-3)
    generator = np.random.default_rng(0)
    model.module.train()
    for _ in range(steps):
        index = generator.choice(encoded.rows, 16, replace=False)
        logits = model.module(**task.inputs.collate(encoded, index), use_cache=False).logits
        wanted = [
            torch.from_numpy(part.astype(np.int64)) for part in _targets(task.answers.store.truth(encoded), index)
        ]
        padded = torch.nn.utils.rnn.pad_sequence(wanted, batch_first=True, padding_value=-100)
        loss = functional.cross_entropy(logits.flatten(0, 1), padded.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.module.save_pretrained(folder)
    return folder


def config_of(folder: Path, source: Path, teacher: Path, **changes: Any) -> dict[str, Any]:
    """A whole campaign as plain values; ``changes`` replace whole sections, or fields of them by dotted name."""
    value: dict[str, Any] = {
        "campaign": "letters",
        "task": "seq2seq",
        "seed": SEED,
        "output": str(folder / "out"),
        "snapshot": {
            "source": str(source),
            "splits": dict(SPLITS),
            "columns": {"text": "article", "target": "summary"},
        },
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


def _targets(truth: Any, index: Any) -> list[Any]:
    return [truth.values[truth.offsets[row] : truth.offsets[row + 1]] for row in index]
