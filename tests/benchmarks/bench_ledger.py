"""Opening a store through its checkpoint against opening it by reading its records; and opening a million units.

    python -m tests.benchmarks.bench_ledger [--units 1000000] [--small 64000]

Prints the ratio (records / checkpoint, both in this run, each in a process of its own) on a smaller store whose
records are all there, then seconds and peak memory of a store of ``--units``, whose checkpoint is built from
arrays: its records are empty files, which nobody reads below a checkpoint.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_distill.fingerprint import canonical_json
from ray_distill.labels.model.work_units import Receipt
from ray_distill.labels.store.label_store import create_or_open, open_store
from ray_distill.storage import files
from ray_distill.storage.committed_units import Ledger, schema_of
from ray_distill.storage.log import CommitLog, record_url
from ray_distill.testing.labels import fake_manifest

UNITS_A_RECORD = 64
ROWS_A_UNIT = 1000
MANIFEST = fake_manifest(layers=(1,))

#: Its parts run in processes of their own, started from the root, where `tests` is found.
ROOT, MODULE = Path(__file__).parents[2], "tests.benchmarks.bench_ledger"


def fixed(rng: np.random.Generator, count: int, size: int) -> pa.Array:
    """Random bytes, ``size`` each."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), count, [None, pa.py_buffer(rng.bytes(count * size))])


def many_units(count: int) -> pa.Table:
    """The columns of ``count`` committed units with labels and one hidden layer each."""
    rng, numbers = np.random.default_rng(0), np.arange(count)
    element = schema_of(Receipt).field("parts").type.value_type
    names = pa.array(["distributions", "hidden.7"] * count)
    sizes = pa.array(rng.integers(50_000, 90_000, 2 * count))
    parts = pa.StructArray.from_arrays([names, sizes, fixed(rng, 2 * count, 32)], fields=list(element))
    columns = {
        "record": numbers // UNITS_A_RECORD,
        "unit": fixed(rng, count, 16),
        "attempt": fixed(rng, count, 16),
        "manifest": pa.repeat(MANIFEST.fingerprint, count),
        "shard": pa.array([f"train-{number // 100:05d}.parquet" for number in range(count)]),
        "start": numbers % 100 * ROWS_A_UNIT,
        "stop": numbers % 100 * ROWS_A_UNIT + ROWS_A_UNIT,
        "rows": np.full(count, ROWS_A_UNIT),
        "rejected": np.zeros(count, np.int64),
        "halved": np.zeros(count, np.int64),
        "reasons": pa.repeat("", count),
        "quarantine": pa.nulls(count, schema_of(Receipt).field("quarantine").type),
        "parts": pa.ListArray.from_arrays(pa.array(2 * np.arange(count + 1, dtype=np.int32)), parts).cast(
            schema_of(Receipt).field("parts").type
        ),
    }
    return pa.table(columns, schema=schema_of(Receipt))


def write_large(url: str, units: int) -> None:
    """A store that is only its manifest, a checkpoint, and names of records."""
    create_or_open(url, MANIFEST)
    records = -(-units // UNITS_A_RECORD)
    chain = hashlib.sha256(b"").digest() + np.random.default_rng(1).bytes(32 * records)
    data = Ledger(Receipt, many_units(units), records).to_bytes(chain)
    name = f"{records:012d}-{hashlib.sha256(data).hexdigest()[:32]}.parquet"
    files.write_bytes(files.join(url, "log/compact", name), data)
    for number in range(records):
        Path(record_url(url, number)).touch()


def write_small(url: str, units: int) -> None:
    """A store with all its records and their checkpoint."""
    create_or_open(url, MANIFEST)
    receipts = list(Ledger(Receipt, many_units(units), units).receipts())
    for number, at in enumerate(range(0, units, UNITS_A_RECORD)):
        record = {"version": 1, "units": [receipt.to_dict() for receipt in receipts[at : at + UNITS_A_RECORD]]}
        Path(record_url(url, number)).parent.mkdir(parents=True, exist_ok=True)
        Path(record_url(url, number)).write_bytes(canonical_json(record) + b"\n")
    store = open_store(url)
    store.log.refresh()
    store.compact()


def peak_mb() -> float:
    """Peak memory of this process; getrusage would give the parent's, where that was larger."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def open_it(url: str, way: str) -> dict[str, float]:
    """Open, look up one unit, sum the rows; seconds and the peak memory of this process above its start, in MB."""
    before, start, processor = peak_mb(), time.perf_counter(), time.process_time()
    store = open_store(url)
    if way == "records":
        store.log = CommitLog(store.url)
    store.log.refresh()
    ledger = store.ledger
    rows = int(ledger.counts("rows").sum())
    assert "0" * 32 not in ledger
    assert rows == ROWS_A_UNIT * len(ledger)
    return {
        "units": len(ledger),
        "rows": rows,
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - processor,
        "mb": peak_mb() - before,
        "peak": peak_mb(),
    }


def measured(url: str, way: str) -> dict[str, float]:
    """`open_it` in a process of its own, so that neither's memory nor warmth is the other's."""
    done = subprocess.run(
        [sys.executable, "-m", MODULE, "--open", url, "--way", way], cwd=ROOT, check=True, capture_output=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run as the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=64_000)
    parser.add_argument("--open")
    parser.add_argument("--way", default="checkpoint")
    args = parser.parse_args(argv)
    if args.open:
        say(json.dumps(open_it(args.open, args.way)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_small(f"{folder}/small", args.small)
        slow, fast = (measured(f"{folder}/small", way) for way in ("records", "checkpoint"))
        say(
            f"{args.small} units, opening: records {told(slow)}; checkpoint {told(fast)}; "
            f"ratio {slow['seconds'] / fast['seconds']:.1f}"
        )
        write_large(f"{folder}/large", args.units)
        size = sum(item.size for item in files.list_files(f"{folder}/large/log/compact"))
        large = measured(f"{folder}/large", "checkpoint")
        say(
            f"{large['units']:.0f} units, {large['rows']:.1e} rows: checkpoint of {size / 1e6:.0f} MB, opening: "
            f"{told(large)}, peak {large['peak']:.0f} MB"
        )


def say(line: str) -> None:
    """One line of the result."""
    sys.stdout.write(line + "\n")


def told(found: dict[str, float]) -> str:
    """Wall and processor seconds, and memory."""
    return f"{found['seconds']:.2f} s (processor {found['cpu']:.2f} s), +{found['mb']:.0f} MB"


if __name__ == "__main__":
    main()
