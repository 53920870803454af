"""The order of examples at scale: time, memory, state and read amplification of chosen ranks of many, in one process.

    python -m tests.benchmarks.bench_order [--examples 1e9] [--ranks 1024] [--count]

The baseline is one permutation of all rows an epoch, as small data have it; it is made of a hundredth of the rows,
because all of them would take 8 bytes each. ``--count`` goes through every batch of an epoch of the whole job and marks
each row it meets: none is missing, none comes twice.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ray_distill.students.order.cursor import cursor_at, epoch_order
from ray_distill.students.order.epoch_order import Order, Plan
from ray_distill.students.order.micro_batches import share

UNIT_ROWS, SHARE = 512, 64

#: Its parts run in processes of their own, started from the root, where `tests` is found.
ROOT, MODULE = Path(__file__).parents[2], "tests.benchmarks.bench_order"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=lambda text: int(float(text)), default=10**9)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--count", action="store_true", help="mark every row of an epoch (a byte an example)")
    parser.add_argument("--alone", action="store_true", help="play one rank and print what it measured, as JSON")
    asked = parser.parse_args(argv)
    if asked.alone:
        sys.stdout.write(json.dumps(_one_rank(asked.examples, asked.ranks)))
        return
    # a process of its own, so that its peak is the sampler's
    done = subprocess.run(
        [sys.executable, "-m", MODULE, "--alone", "--examples", str(asked.examples), "--ranks", str(asked.ranks)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found, baseline = json.loads(done.stdout), _permutation(asked.examples // 100)
    sys.stdout.write(
        f"order: {asked.examples:,} examples, {asked.ranks} ranks, {found['units']:,} units in {found['lanes']} lanes: "
        f"an epoch is opened in {found['open_s']:.2f} s, a rank's step takes {found['step_ms']:.3f} ms, "
        f"{found['memory_mb']:.0f} MB, {found['state']} bytes of state; {baseline / found['step_ms'] * 1e3:,.0f}x "
        f"faster a step than a permutation of a hundredth of the examples ({baseline:.2f} s)\n"
        f"read amplification of 3 ranks over an epoch: {found['amplification']:.3f}\n"
    )
    if asked.count:
        sys.stdout.write(_count(_plan(asked.examples, asked.ranks)) + "\n")


def _plan(examples: int, ranks: int) -> Plan:
    units = np.full(-(-examples // UNIT_ROWS), UNIT_ROWS, np.int64)
    units[-1] = examples - UNIT_ROWS * (len(units) - 1)
    return Plan(units=units, global_batch=ranks * SHARE, mixed=2 * ranks)


def _one_rank(examples: int, ranks: int) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = _plan(examples, ranks)
    start = time.perf_counter()
    order = Order(plan, 0)
    order.rows_at(0, np.zeros(1, np.int64))
    opened = time.perf_counter() - start
    steps = min(plan.steps, 2000)
    start = time.perf_counter()
    for step in range(steps):
        _rows_of(order, step, ranks // 2, ranks)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    reads = [_reads(order, rank, ranks) for rank in (0, ranks // 3, ranks - 1)]
    return {
        "units": len(plan.units),
        "lanes": plan.lanes,
        "open_s": opened,
        "step_ms": seconds / steps * 1e3,
        "memory_mb": memory / 1024,
        "state": len(json.dumps(cursor_at(plan.steps - 1, plan.rows, plan.global_batch).to_dict())),
        "amplification": float(np.mean(reads)) * ranks / len(plan.units),
    }


def _rows_of(order: Order, step: int, rank: int, ranks: int) -> np.ndarray:
    return order.rows_at(step, share(np.arange(order.size(step)), rank=rank, world=ranks).rows)


def _reads(order: Order, rank: int, ranks: int) -> int:
    """Units that a rank reads over an epoch if it holds two windows of each of its lanes."""
    plan = order.plan
    held, reads = OrderedDict[int, None](), 0
    room = 2 * plan.window * max(1, plan.lanes // ranks)
    for step in range(plan.steps):
        for unit in np.unique(_rows_of(order, step, rank, ranks) // UNIT_ROWS).tolist():
            reads += unit not in held
            held[unit] = None
            held.move_to_end(unit)
            while len(held) > room:
                held.popitem(last=False)
    return reads


def _permutation(rows: int) -> float:
    start = time.perf_counter()
    epoch_order(0, 0, rows)
    return time.perf_counter() - start


def _count(plan: Plan) -> str:
    """Every batch of an epoch, all ranks at once: a rank's rows are a slice of each."""
    seen, order = np.zeros(plan.rows, np.uint8), Order(plan, 0)
    start = time.perf_counter()
    for step in range(plan.steps):
        seen[order.batch(step)] += 1
    return (
        f"counted: {int((seen == 1).sum()):,} of {plan.rows:,} examples came exactly once over {plan.steps:,} "
        f"batches ({time.perf_counter() - start:.0f} s)"
    )


if __name__ == "__main__":
    main()
