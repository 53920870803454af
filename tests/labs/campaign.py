"""A tiny text campaign that can be learnt, for the end-to-end tests: made-up traffic, and teachers that know it.

A text of a class is spelt mostly with the letters of that class, so that a bag of letters tells the classes apart.
Everything is a function of seeds.
"""

import json
import os
import signal
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import torch
import yaml

from ray_distill.config import Campaign, Splits, load_config
from ray_distill.labels.store.label_store import open_store
from ray_distill.models.core.model import ModelParts
from ray_distill.models.io.load import load_model
from ray_distill.snapshots.identity import row_ids
from ray_distill.snapshots.splits import SPLITS, split_by_id
from ray_distill.storage import files
from ray_distill.storage.receipts import part_file
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.labels import winners
from ray_distill.testing.models import TinyText, tiny_text_processor, write_tiny_text_model

CLASSES = ("fruit", "metal", "river")
LETTERS = ("abcdef", "ghijkl", "mnopqr")
SEED = 5
SPLIT_SHARES = {"train": 0.6, "validation": 0.1, "calibration": 0.1, "test": 0.2}


def texts(rows: int, seed: int, weights: Sequence[float] = (1, 1, 1)) -> list[tuple[str, str]]:
    """Distinct texts of 15 letters and their classes; two letters of five are of the class, the others any.

    Args:
        rows: how many.
        seed: equal seeds give equal texts.
        weights: how common each class is.
    """
    generator = np.random.default_rng(seed)
    share = np.asarray(weights, float) / sum(weights)
    made: dict[str, str] = {}
    while len(made) < rows:
        kind = int(generator.choice(len(CLASSES), p=share))
        own = generator.random(15) < 0.4
        letters = [generator.choice(list(LETTERS[kind] if mine else string.ascii_lowercase)) for mine in own]
        made["".join(letters[:5] + [" "] + letters[5:])] = CLASSES[kind]
    return list(made.items())


def write_rows(path: Path, rows: Sequence[tuple[str, str | None]]) -> Path:
    """Write texts and labels as JSONL; a label may be null."""
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def annotated(rows: Sequence[tuple[str, str]], train_labels: int) -> list[tuple[str, str | None]]:
    """The rows with their labels, as in production: of the train split only ``train_labels`` are known."""
    ids = row_ids(pa.chunked_array([pa.array([text for text, _ in rows], pa.large_string())]), "text")
    train = np.flatnonzero(split_by_id(ids, Splits(**SPLIT_SHARES), SEED) == SPLITS.index("train"))
    unknown = set(train[train_labels:].tolist())
    return [(text, None if at in unknown else label) for at, (text, label) in enumerate(rows)]


def write_teacher(folder: Path, steps: int = 60) -> Path:
    """Train a BERT of 2 layers on 600 texts of its own (some seconds) and write it as a checkpoint."""
    torch.set_num_threads(1)
    write_tiny_text_model(folder, CLASSES, seed=1, initializer_range=0.1)
    model, task = load_model(str(folder), task="text_classification"), TASKS["text_classification"]
    rows = texts(600, seed=99)
    table = pa.table(
        {
            "row_id": pa.array([at.to_bytes(16, "big") for at in range(len(rows))], pa.binary(16)),
            "text": pa.array([text for text, _ in rows]),
        }
    )
    encoded = task.inputs.encode(table, model.processor)
    wanted = torch.tensor([CLASSES.index(label) for _, label in rows])
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=5e-3)
    generator = np.random.default_rng(0)
    model.module.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(steps):
            index = generator.choice(len(rows), 64, replace=False)
            logits = model.module(**task.inputs.collate(encoded, index)).logits
            loss = torch.nn.functional.cross_entropy(logits, wanted[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.module.save_pretrained(folder)
    return folder


def spelling_teacher(fuse: str | None = None, backwards: bool = False) -> ModelParts:
    """A teacher that needs no training: it counts letters, and has no finite answer for a text with ``!``.

    It throws while the file ``fuse`` exists.

    Args:
        fuse: changes nothing of its fingerprint.
        backwards: mistake every class for another, to be a bad teacher.
    """
    processor = tiny_text_processor()
    module = TinyText(len(CLASSES), fuse)
    ids = [processor.tokenizer.convert_tokens_to_ids([letter, f"##{letter}"]) for letter in string.ascii_lowercase]
    with torch.no_grad():
        module.embedding.weight.zero_()
        module.head.weight.zero_()
        module.head.bias.zero_()
        module.embedding.weight[processor.tokenizer.convert_tokens_to_ids("!")] = torch.nan
        for kind, letters in enumerate(LETTERS):
            for letter in letters:
                module.embedding.weight[ids[string.ascii_lowercase.index(letter)], kind] = 1.0
            module.head.weight[(kind + backwards) % len(CLASSES), kind] = 2.0
    return ModelParts(module=module, processor=processor, classes=CLASSES)


def config_of(folder: Path, source: Path, teacher: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A whole campaign as plain values; ``changes`` replace whole sections, or fields of them by dotted name.

    A teacher that is a function has no config to start a student from: such campaigns only label, without a student.
    """
    model = {"from": "config", "overrides": {"num_hidden_layers": 1}}
    value: dict[str, Any] = {
        "campaign": "spelling",
        "task": "text_classification",
        "seed": SEED,
        "output": str(folder / "out"),
        "snapshot": {
            "source": str(source),
            "columns": {"label": "label"},
            "classes": list(CLASSES),
            "splits": SPLIT_SHARES,
        },
        "labels": {
            "teacher": dict(teacher),
            "signal": {"temperatures": [1, 2]},
            "hidden": {"layers": [-1]},
            "check": {"limits": {"accuracy": {"min": 0.7}}},
            "unit_rows": 32,
        },
        "student": {
            **({} if ":" in teacher["model"] else {"model": model}),
            "losses": {"soft": {"weight": 0.9, "temperature": 2}, "hard": {"weight": 0.1}},
            "training": {
                "epochs": 4,
                "global_batch": 32,
                "micro_batch": 32,
                "learning_rate": 5e-3,
                "engine": "torch",
                "evaluate_every": 10,
                "checkpoint_every": 10,
            },
        },
        "evaluation": {"severities": [1], "bootstrap": 200, "latency_requests": 10},
        "gate": {"limits": {"accuracy": {"min": 0.5}, "ece": None}, "beat": []},
    }
    for name, change in changes.items():
        *parents, last = name.split("__")
        section = value
        for parent in parents:
            section = section[parent]
        section[last] = change
    return value


def write_config(path: Path, value: Mapping[str, Any]) -> Path:
    """Write a campaign's YAML file."""
    path.write_text(yaml.safe_dump(dict(value), sort_keys=False), encoding="utf-8")
    return path


def load(path: Path, value: Mapping[str, Any]) -> Campaign:
    """Write a campaign's YAML file and read it as the commands do."""
    return load_config(write_config(path, value))


def label_bytes(store_url: str) -> dict[str, bytes]:
    """The committed label shard of every unit, by unit id."""
    store = open_store(store_url)
    store.log.refresh()
    return {
        unit: files.read_bytes(files.join(store_url, part_file("distributions", unit, receipt.attempt)))
        for unit, receipt in winners(store.log.records).items()
    }


def committed_rows(store_url: str) -> int:
    """Rows that the store's log says the teacher has answered."""
    store = open_store(store_url)
    store.log.refresh()
    return sum(receipt.rows for receipt in winners(store.log.records).values())


def events_of(stderr: str) -> list[dict[str, Any]]:
    """Return the events among the lines that a command wrote to stderr."""
    return [json.loads(line) for line in stderr.splitlines() if line.startswith('{"time"') and line.endswith("}")]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A running ``ray-distill`` command in a process of its own, with what it has written so far."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    mark: str
    """Value of ``RD_TEST_MARK`` in its environment, by which its processes can be told from all others."""

    @classmethod
    def start(cls, folder: Path, *arguments: str) -> "Command":
        """Start a command; its streams go to files in a new folder below ``folder``."""
        own = Path(tempfile.mkdtemp(prefix="command-", dir=folder))
        with (own / "stdout").open("wb") as out, (own / "stderr").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray_distill.cli", *arguments],
                stdout=out,
                stderr=err,
                cwd=folder,
                start_new_session=True,
                env={**os.environ, "RD_TEST_MARK": own.name},
                # As from a terminal: a shell starts what runs in its background, these tests too, with SIGINT ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        return cls(process=process, folder=own, mark=own.name)

    @property
    def stderr(self) -> str:
        """What it has told so far."""
        return (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")

    @property
    def result(self) -> Any:
        """The JSON in the last line of its stdout."""
        return json.loads((self.folder / "stdout").read_text(encoding="utf-8").splitlines()[-1])

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events among the lines of its stderr."""
        return events_of(self.stderr)

    @property
    def skipped(self) -> list[str]:
        """Stages it says it skipped."""
        return [event["skipped"] for event in self.events if "skipped" in event]

    def until(self, what: Callable[[], bool], seconds: float = 400) -> None:
        """Wait until ``what`` holds; a command that ends before it does fails the test."""
        deadline = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, f"ended with {self.process.returncode} too soon:\n{self.stderr}"
            if time.monotonic() > deadline:
                self._fail(f"it did not come to it in {seconds:g} s")
            time.sleep(0.02)

    def wait(self, seconds: float = 600) -> int:
        """Its exit status."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._fail(f"it did not end in {seconds:g} s")

    def wait_for_all(self, seconds: float = 90) -> None:
        """Wait until everything that it started has ended too."""
        deadline = time.monotonic() + seconds
        while left := self._processes():
            names = [Path(f"/proc/{pid}/comm") for pid in left]
            assert time.monotonic() < deadline, f"still alive: {[name.read_text() for name in names if name.exists()]}"
            time.sleep(0.2)

    def _processes(self) -> set[int]:
        """The process and everything it started: all have the mark of its environment."""
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    marked = f"RD_TEST_MARK={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue
                if marked:
                    found.add(int(entry.name))
        return found

    def _fail(self, why: str) -> NoReturn:
        """End its processes, which have a process group of their own, and the test."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        raise AssertionError(f"{why}:\n{self.stderr}")
