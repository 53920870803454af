"""Labelling against a bare forward loop of the same teacher, and the driver's memory as rows grow.

    python -m tests.benchmarks.bench_labelling minilm|smollm [--rows N]     rate of the pipeline / rate of the loop
    python -m tests.benchmarks.bench_labelling memory [--rows N]            peak memory of the driver, 20 N / N rows

The loop has the teacher, one core and the batches, encoded beforehand, and does nothing but forward passes. The
pipeline has one teacher actor with one core (the accelerator, so to say), which answers and reduces, and the other
cores to read, encode, write and commit. It is timed at steady state: over the second half of its units, when all of
its processes are up. The loop is run before and after it, so that a drift of the machine falls out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Its parts run in processes of their own, started from the root, where `tests` is found.
ROOT, MODULE = Path(__file__).parents[2], "tests.benchmarks.bench_labelling"
TASKS = {"minilm": "text_classification", "smollm": "causal_lm", "tiny": "text_classification"}
#: Rows by default, a teacher batch, and a unit.
SIZES = {"minilm": (768, 32, 64), "smollm": (192, 8, 16), "tiny": (2000, 64, 256)}


def snapshot_of(folder: Path, rows: int) -> dict[str, str]:
    """Freeze texts; the reference as plain values."""
    from ray_distill.config import SnapshotConfig
    from ray_distill.snapshots.take import take_snapshot
    from tests.labs.labelling import write_texts

    source = write_texts(folder / "texts.jsonl", rows)
    config = SnapshotConfig(
        source=str(source),
        columns={"text": "text"},
        splits={"train": 0.97, "validation": 0.01, "calibration": 0.01, "test": 0.01},
    )
    return take_snapshot(config, input_column="text", seed=0, url=str(folder / "snapshots")).to_dict()


def teacher_of(name: str) -> Any:
    """The teacher's config."""
    from ray_distill.config import TeacherConfig

    return TeacherConfig(model=f"tests.labs.labelling:{name}")


def bare(name: str, snapshot: dict[str, str]) -> dict[str, float]:
    """Forward passes over the batches of every unit, and nothing else: rows a second."""
    import torch

    from ray_distill.artifacts import SnapshotRef
    from ray_distill.models.core.forward import forward
    from ray_distill.models.io.load import load_model
    from ray_distill.runtime.labelling.batching import plan
    from ray_distill.snapshots.reader import open_snapshot
    from ray_distill.tasks.catalogue import get_task

    torch.set_num_threads(1)
    model, task = load_model(teacher_of(name), task=TASKS[name]), get_task(TASKS[name])
    opened = open_snapshot(SnapshotRef.from_dict(snapshot))
    _, batch, unit = SIZES[name]
    batches, total = [], 0
    for rows in (opened.read_shard(shard, ["row_id", "text"]) for shard in opened.shards):
        total += rows.num_rows
        for start in range(0, rows.num_rows, unit):
            encoded = task.inputs.encode(rows.slice(start, unit), model.processor)
            batches += [task.inputs.collate(encoded, index) for index in plan(encoded, batch)]
    with torch.inference_mode():
        forward(model.module, batches[0])
        start_s = time.perf_counter()
        for features in batches:
            forward(model.module, features)
    return {"rate": total / (time.perf_counter() - start_s)}


def label(name: str, snapshot: dict[str, str], store_url: str) -> dict[str, float]:
    """Label the snapshot: rows a second at steady state, bytes a row, peak memory of this driver in MB."""
    from ray_distill.artifacts import SnapshotRef
    from ray_distill.config import Resources
    from ray_distill.labels.store.label_store import create_or_open
    from ray_distill.models.io.load import load_model
    from ray_distill.runtime.core import connection
    from ray_distill.runtime.labelling.encode_write import LabelJob
    from ray_distill.runtime.labelling.label_units import label_units
    from ray_distill.snapshots.reader import open_snapshot

    model = load_model(teacher_of(name), task=TASKS[name])
    manifest = manifest_of(name, model)
    del model
    job = LabelJob(
        task=TASKS[name],
        snapshot=SnapshotRef.from_dict(snapshot),
        teacher=teacher_of(name),
        store_url=store_url,
        manifest=manifest,
        resources=Resources(actors=(1, 1), cpus=1, batch=manifest.batch),
    )
    store = create_or_open(store_url, manifest)
    units = store.coverage(open_snapshot(job.snapshot)).units
    times: list[tuple[float, int]] = []
    with connection.connected():
        done = label_units(
            job, store, units, max_rejected=0, progress=lambda rows: times.append((time.perf_counter(), rows))
        )
    first = len(times) // 2
    seconds, later = times[-1][0] - times[first][0], sum(rows for _, rows in times[first + 1 :])
    return {
        "rate": later / seconds if seconds else 0.0,
        "rows": done.rows,
        "bytes": done.bytes_written / done.rows,
        "mb": peak_mb(),
    }


def manifest_of(name: str, model: Any) -> Any:
    """Top 50 of a language model in compact form; dense of a classifier."""
    from ray_distill.labels.format.codecs.compact import compact_options
    from ray_distill.labels.model.manifest import StoreManifest, TeacherIdentity, parts_of
    from ray_distill.labels.model.part_specs import DistributionsSpec

    _, batch, unit = SIZES[name]
    spec = DistributionsSpec(space=model.space)
    if TASKS[name] == "causal_lm":
        options = compact_options((1.0,), False)
        spec = spec.with_changes(estimator="topk", k=50, codec=("compact", 2), options=options)
    return StoreManifest(
        task=TASKS[name],
        teacher=TeacherIdentity(fingerprint=model.fingerprint),
        parts=parts_of([spec]),
        batch=batch,
        unit_rows=unit,
    )


def peak_mb() -> float:
    """Peak memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measured(what: str, name: str, snapshot: dict[str, str], store: str = "") -> dict[str, float]:
    """`bare` or `label` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", MODULE, name, "--only", what, "--snapshot", json.dumps(snapshot), "--store", store],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(name: str, rows: int) -> str:
    """One line: the pipeline's rate over the bare loop's."""
    with tempfile.TemporaryDirectory() as folder:
        snapshot = snapshot_of(Path(folder), rows)
        before = measured("bare", name, snapshot)["rate"]
        found = measured("label", name, snapshot, f"{folder}/store")
        after = measured("bare", name, snapshot)["rate"]
    loop = (before + after) / 2
    return (
        f"labelling {name}: {found['rate'] / loop:.3f} of a bare forward loop "
        f"({found['rate']:.2f} against {before:.2f} before and {after:.2f} after, rows/s on one core each); "
        f"{rows} rows, {found['bytes']:,.0f} bytes a row"
    )


def memory(rows: int) -> str:
    """One line: the driver's peak memory at twenty times the rows over that at one time."""
    found = []
    for count in (rows, 20 * rows):
        with tempfile.TemporaryDirectory() as folder:
            found.append(measured("label", "tiny", snapshot_of(Path(folder), count), f"{folder}/store")["mb"])
    return (
        f"labelling memory: {found[1] / found[0]:.3f} of the driver's peak at {rows:,} rows when there are "
        f"{20 * rows:,} ({found[0]:.0f} and {found[1]:.0f} MB)"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the line that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("minilm", "smollm", "tiny", "memory"))
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--only", choices=("bare", "label"))
    parser.add_argument("--snapshot", type=json.loads)
    parser.add_argument("--store", default="")
    given = parser.parse_args(argv)
    if given.only == "bare":
        line = json.dumps(bare(given.what, given.snapshot))
    elif given.only == "label":
        line = json.dumps(label(given.what, given.snapshot, given.store))
    elif given.what == "memory":
        line = memory(given.rows or 2000)
    else:
        line = compare(given.what, given.rows or SIZES[given.what][0])
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
