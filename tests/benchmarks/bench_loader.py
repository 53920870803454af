"""Reading shuffled training examples with top-64 labels from shards: against ``datasets`` and ``mosaicml-streaming``.

    python -m tests.benchmarks.bench_loader [rows|documents] [--examples N] [--codec topk|compact] [--mosaic PYTHON]

``rows`` are a classifier's: 16 tokens, 64 ids and log-probabilities. ``documents`` are a language model's: 128 tokens,
and 64 ids and log-probabilities at each but the last. What is timed ends with tensors of a batch, an epoch long. Ours
are streamed (``stream: always``, with room for a part of the units) from a snapshot and a label store, digests checked,
texts split into tokens; what it takes to open them is told apart. The two others find their tokens ready: Parquet with
a shuffle buffer, and MDS shards. Each runs in its own process with no and with two workers, and its better rate counts.
CPU seconds are of all threads and workers: on a busy machine they are the ratio to look at. ``labels alone`` is what no
way of loading them saves: each unit's labels read, checked and decoded, and copied into tensors once.

``mosaicml-streaming`` 0.13 wants numpy < 2.2 and transformers < 5, so it needs an environment of its own; PYTHON is its
interpreter.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_distill.config import SnapshotConfig, TrainingConfig
from ray_distill.labels.format.codecs.compact import compact_options, fit_ids
from ray_distill.labels.format.fitted_arrays import write_fits
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.manifest import StoreManifest, TeacherIdentity, parts_of
from ray_distill.labels.model.part_specs import AnswerSpace, DistributionsSpec
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.labels.model.signal import signal_of
from ray_distill.labels.store.label_store import create_or_open
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.store.writer import write_attempt
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.snapshots.take import take_snapshot
from ray_distill.students.data.answer_format import AnswerFormat
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.open_data import open_data
from ray_distill.students.data.streaming import Source, StreamedSet
from ray_distill.students.loop.training_run import TrainingRun, batches_of
from ray_distill.students.order.prefetch import Feed
from ray_distill.students.process_group import current_ranks
from ray_distill.tasks.answers.classes.learn import ClassFormat
from ray_distill.tasks.answers.tokens.learn import TokenFormat
from ray_distill.tasks.catalogue import TASKS
from tests.labs.codecs import language_like

K, BLOCKS = 64, 8


@dataclass(frozen=True)
class Kind:
    """A kind of example."""

    task: str
    classes: int
    tokens: int
    positions: int
    """With labels, an example."""
    unit: int
    """Examples a unit."""
    batch: int
    examples: int
    memory_gb: float


KINDS = {
    "rows": Kind("text_classification", 1000, 16, 1, 512, 256, 65_536, 0.05),
    "documents": Kind("causal_lm", 32_000, 128, 127, 64, 64, 8192, 0.35),
}


class Words:
    """A tokenizer that costs next to nothing: a text is its token ids in decimal."""

    fingerprint = "words"

    def texts(self, texts: list[str]) -> dict[str, RaggedArray]:
        """``input_ids`` of each text."""
        values = np.fromstring(" ".join(texts), np.int32, sep=" ") if texts else np.empty(0, np.int32)
        offsets = np.append(0, np.cumsum([text.count(" ") + 1 for text in texts])).astype(np.int64)
        return {"input_ids": RaggedArray(values=values, offsets=offsets)}

    images: Any = None


#: Its parts run in processes of their own, started from the root, where `tests` is found.
ROOT, MODULE = Path(__file__).parents[2], "tests.benchmarks.bench_loader"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS, nargs="?", default="rows")
    parser.add_argument("--examples", type=int)
    parser.add_argument("--codec", choices=("topk", "compact"), default="topk", help="topk: float32, as the others")
    parser.add_argument("--mosaic", help="interpreter of an environment with mosaicml-streaming")
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    parser.add_argument("--datasets", help=argparse.SUPPRESS)
    parser.add_argument("--least", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    kind = KINDS[asked.kind]
    for part, run in ((asked.ours, _ours), (asked.least, _least), (asked.datasets, _datasets)):
        if part:
            sys.stdout.write(json.dumps(run(Path(part), kind)))
            return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, kind, asked.examples or kind.examples, asked.codec)
        os.sync()  # what is read first is not to be read while the disk is busy
        here = [sys.executable, "-m", MODULE, asked.kind]
        ours, least = (_run([*here, part, str(folder)]) for part in ("--ours", "--least"))
        others = {"datasets": _run([*here, "--datasets", str(folder)])}
        if asked.mosaic:
            other = str(Path(__file__).with_name("mosaic_loader.py"))
            others["mosaicml-streaming"] = _run([asked.mosaic, other, str(folder), str(kind.unit), str(kind.batch)])
    sys.stdout.write(
        f"loader k={K}, {asked.codec}: {ours['rate']:,.0f} {asked.kind}/s from {ours['units']} units of {kind.unit}, "
        f"read {ours['amplification']:.2f} times an epoch, opened in {ours['open_s']:.1f} s; {ours['cpu_rate']:,.0f} "
        f"a CPU second (labels alone {least['cpu_rate']:,.0f})\n"
    )
    for other, found in others.items():
        sys.stdout.write(
            f"  {ours['rate'] / found['rate']:.1f}x {other} ({found['rate']:,.0f}/s); a CPU second "
            f"{ours['cpu_rate'] / found['cpu_rate']:.1f}x ({found['cpu_rate']:,.0f})\n"
        )
    if not asked.mosaic:
        sys.stdout.write("  mosaicml-streaming was not measured: give --mosaic\n")


def _run(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _write(folder: Path, kind: Kind, examples: int, codec: str) -> None:
    """The same labels thrice: as a snapshot with a label store, as Parquet, and as arrays for MDS."""
    exact = [
        language_like(kind.positions * kind.unit, kind.classes, K, seed=seed, row=kind.positions)
        for seed in range(BLOCKS)
    ]
    tokens = np.random.default_rng(1).integers(1, 30_000, (examples, kind.tokens), dtype=np.int32)
    lines = "".join(json.dumps({"text": " ".join(map(str, row))}) + "\n" for row in tokens.tolist())
    (folder / "texts.jsonl").write_text(lines)
    np.savez(
        folder / "blocks.npz",
        tokens=tokens,
        ids=np.stack([block.ids for block in exact]),
        logp=np.stack([block.logp for block in exact]),
    )
    _label(folder, kind, exact, codec)
    (folder / "parquet").mkdir()
    schema = _plain(kind, tokens[:1], exact[0]).schema
    for number in range(8):
        with pq.ParquetWriter(folder / "parquet" / f"{number}.parquet", schema, compression="zstd") as writer:
            for at in range(number * kind.unit, examples, 8 * kind.unit):
                writer.write_table(_plain(kind, tokens[at : at + kind.unit], exact[at // kind.unit % BLOCKS]))


def _label(folder: Path, kind: Kind, exact: list[Distributions], codec: str) -> None:
    splits = {"train": 0.97, "validation": 0.01, "calibration": 0.01, "test": 0.01}
    config = SnapshotConfig.model_validate({"source": str(folder / "texts.jsonl"), "splits": splits})
    ref = take_snapshot(config, input_column="text", seed=0, url=str(folder / "snapshots"))
    named = kind.task == "text_classification"
    form: dict[str, Any] = {"codec": ("topk", 2)}
    fits: dict[str, str] = {}
    if codec == "compact":
        fits = write_fits(str(folder / "labels"), {"ids": fit_ids(exact[0], kind.classes)})
        form = {"codec": ("compact", 2), "options": compact_options((1.0,), False)}
    space = AnswerSpace(size=kind.classes, names=_names(kind) if named else ())
    manifest = StoreManifest(
        task=kind.task,
        teacher=TeacherIdentity(fingerprint="synthetic"),
        parts=parts_of([DistributionsSpec(space=space, estimator="topk", k=K, **form)]),
        fits=fits,
        unit_rows=kind.unit,
    )
    store, snapshot = create_or_open(str(folder / "labels"), manifest), open_snapshot(ref)
    receipts = []
    for number, unit in enumerate(store.pending(snapshot)):
        ids = snapshot.read_shard(snapshot.shard(unit.shard), ["row_id"])["row_id"].take(pa.array(unit.rows))
        signal = signal_of(distributions=exact[number % BLOCKS].take(np.arange(len(ids))))
        receipts.append(
            write_attempt(
                store.url, manifest, unit, row_ids=rowids.to_arrow(rowids.to_numpy(ids)), signal=signal, rejected=[]
            )
        )
    store.commit(receipts)
    (folder / "ref.json").write_text(store.ref(snapshot).to_json())


def _names(kind: Kind) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(kind.classes))


def _plain(kind: Kind, tokens: np.ndarray, exact: Distributions) -> pa.Table:
    wide, count = kind.positions * K, len(tokens)

    def lists(values: np.ndarray, width: int) -> pa.Array:
        ends = pa.array(np.arange(count + 1, dtype=np.int64) * width)
        return pa.LargeListArray.from_arrays(ends, pa.array(values.reshape(-1)[: count * width]))

    return pa.table(
        {"input_ids": lists(tokens, kind.tokens), "ids": lists(exact.ids, wide), "logp": lists(exact.logp, wide)}
    )


def _ours(folder: Path, kind: Kind) -> dict[str, float]:
    from ray_distill.artifacts import LabelSetRef

    labels = open_label_set(LabelSetRef.from_json((folder / "ref.json").read_text()))
    snapshot, start = open_snapshot(labels.ref.snapshot), time.perf_counter()
    names = _names(kind)
    answers: AnswerFormat = (
        ClassFormat(task=TASKS[kind.task], student_classes=names, snapshot_classes=(), store_classes=names)
        if kind.positions == 1
        else TokenFormat(task=TASKS[kind.task], vocabulary=kind.classes)
    )
    build: Any = partial(build_examples, answers=answers, processor=Words())
    training = TrainingConfig(
        global_batch=kind.batch, micro_batch=kind.batch, stream="always", memory_gb=kind.memory_gb, shuffle_units=32
    )
    data = open_data(
        [Source(snapshot=snapshot, labels=labels, layers=(), columns=("row_id", "text"), build=build)],
        training,
        current_ranks(),
    )
    opened = time.perf_counter() - start
    assert isinstance(data.train, StreamedSet) and data.units is not None
    trial = TrainingRun(
        name="",
        url="",
        curve="",
        data=data.train,
        rows=np.arange(data.train.rows),
        terms=(),
        judge=None,  # type: ignore[arg-type]
        training=training,
        rate=1.0,
        steps=10**9,
        seed=0,
        plan={},
        units=data.units,
    )
    steps, seen, before = trial.order.plan.steps, 0, data.train.loads
    start, cpu = time.perf_counter(), cpu_seconds()
    with Feed(partial(batches_of, trial, current_ranks()), steps) as feed:
        for step in range(steps):
            seen += sum(len(inputs["input_ids"]) for inputs, _ in feed.take(step))
    seconds, units = time.perf_counter() - start, len(data.units) - 1
    loads = data.train.loads - before
    data.train.close()
    return {
        "rate": seen / seconds,
        "cpu_rate": seen / (cpu_seconds() - cpu),
        "open_s": opened,
        "units": units,
        "amplification": loads / units,
    }


def _least(folder: Path, kind: Kind) -> dict[str, float]:
    import torch

    from ray_distill.artifacts import LabelSetRef

    labels, rng = open_label_set(LabelSetRef.from_json((folder / "ref.json").read_text())), np.random.default_rng(0)
    start, cpu = time.perf_counter(), cpu_seconds()
    for unit in labels.units:
        found = labels.read_unit(unit)[1].distributions
        assert found is not None
        shuffled = rng.permutation(len(found.position))
        ids, logp = (
            torch.from_numpy(column.reshape(-1, K).take(shuffled, axis=0)) for column in (found.ids, found.logp)
        )
        assert ids.shape == logp.shape
    return {"rate": labels.rows / (time.perf_counter() - start), "cpu_rate": labels.rows / (cpu_seconds() - cpu)}


def _datasets(folder: Path, kind: Kind) -> dict[str, float]:
    """Examples a second, and a CPU second, of the better of no and two workers."""
    both = [_datasets_with(folder, kind, workers) for workers in (0, 2)]
    return {name: max(found[name] for found in both) for name in both[0]}


def _datasets_with(folder: Path, kind: Kind, workers: int) -> dict[str, float]:
    from datasets import load_dataset
    from torch.utils.data import DataLoader

    files = sorted(str(path) for path in (folder / "parquet").iterdir())
    source = load_dataset("parquet", data_files=files, split="train", streaming=True)
    shuffled = source.shuffle(seed=0, buffer_size=16 * kind.unit).with_format("torch")
    start, cpu, seen = time.perf_counter(), cpu_seconds(), 0
    for batch in DataLoader(shuffled, batch_size=kind.batch, num_workers=workers):
        ids, logp = batch["ids"].reshape(-1, K), batch["logp"].reshape(-1, K)
        assert ids.shape == logp.shape
        seen += len(batch["input_ids"])
    return {"rate": seen / (time.perf_counter() - start), "cpu_rate": seen / (cpu_seconds() - cpu)}


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


if __name__ == "__main__":
    main()
