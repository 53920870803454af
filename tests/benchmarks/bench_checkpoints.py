"""Checkpoints of many ranks, played by as many threads of one process: what is written, read and held by whom.

    python -m tests.benchmarks.bench_checkpoints [--ranks 1024] [--machine 8] [--kilobytes 4]

Every rank saves a file through `students.saving`, all find the checkpoint again and fetch it, through the code that a
training runs. The baseline is every rank reading every file, which is what verifying and loading a checkpoint by itself
would take; files are small here, so counts and bytes are told beside the times of this machine's disk. How evenly the
state of a model of 6.7 billion parameters is dealt to the ranks is compared with whole parameters in turns.
"""

import argparse
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ray_distill.config import CheckpointPolicy
from ray_distill.storage import files
from ray_distill.students.checkpoints import store
from ray_distill.students.checkpoints.async_writer import CheckpointWriter
from ray_distill.students.checkpoints.store import fetched, find_checkpoint
from ray_distill.students.engines.portable_state import assign_writers
from ray_distill.students.process_group import Ranks
from ray_distill.testing.ranks import run_threads

#: Weight, and two moments.
STATES = 3


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--machine", type=int, default=8, help="ranks of a machine")
    parser.add_argument("--kilobytes", type=int, default=4, help="that each rank writes")
    asked = parser.parse_args(argv)
    for ranks in (8, asked.ranks):
        ours, theirs = _most(_atoms(), ranks, by_size=True), _most(_parameters(), ranks, by_size=False)
        sys.stdout.write(
            f"dealt to {ranks} ranks: the fullest writes {ours / 1e9:.2f} GB, {ours / theirs:.2f} of what "
            f"it writes where whole parameters go in turns\n"
        )
    with tempfile.TemporaryDirectory() as folder, _counted(asked.machine) as reads:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = {}
        for name, work in (("saved", partial(_save, kilobytes=asked.kilobytes)), ("found", _find), ("fetched", _fetch)):
            start, before = time.perf_counter(), sum(reads.values())
            run_threads(partial(work, folder), asked.ranks)
            seconds[name] = time.perf_counter() - start, sum(reads.values()) - before
        marker = next(Path(folder).glob("*/marker.json")).stat().st_size
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    sys.stdout.write(
        f"{asked.ranks} ranks, {asked.machine} a machine, a file of {asked.kilobytes} kB each; marker of "
        f"{marker:,} bytes; {memory / 1024:.0f} MB in all\n"
    )
    for name, (took, many) in seconds.items():
        sys.stdout.write(f"{name} in {took:.2f} s, {many:,} files read\n")
    total = sum(many for _, many in seconds.values()) - seconds["saved"][1]
    sys.stdout.write(
        f"found and fetched with {total / (2 * asked.ranks**2):.4f} of the reads of every rank reading "
        "every file twice\n"
    )


def _parameters() -> list[int]:
    """Numbers of the weight and moments of each parameter of a decoder of 6.7 billion."""
    layers, width, inner, vocabulary = 32, 4096, 11008, 32000
    layer = [width * width] * 4 + [width * inner] * 3 + [width] * 2
    return [STATES * size for size in [vocabulary * width, *(layer * layers), width, vocabulary * width]]


def _atoms() -> list[int]:
    return [size // STATES for size in _parameters() for _ in range(STATES)]


def _most(sizes: list[int], ranks: int, *, by_size: bool) -> int:
    """Bytes of the fullest rank."""
    owners = assign_writers(sizes, ranks) if by_size else [number % ranks for number in range(len(sizes))]
    held = Counter[int]()
    for size, owner in zip(sizes, owners, strict=True):
        held[owner] += 4 * size
    return max(held.values())


@contextmanager
def _counted(machine: int) -> Iterator[Counter[str]]:
    """Reads by file, while neighbouring threads are ranks of one machine."""
    reads, lock, read, where = Counter[str](), threading.Lock(), files.read_bytes, store._machine

    def counted(url: str) -> bytes:
        with lock:
            reads[url] += 1
        return read(url)

    files.read_bytes = counted
    store._machine = lambda: (str(int(threading.current_thread().name.split("_")[-1]) // machine), 0, 0)
    try:
        yield reads
    finally:
        files.read_bytes, store._machine = read, where


def _save(folder: str, ranks: Ranks, *, kilobytes: int) -> None:
    def write(local: Path) -> None:
        (local / "engine").mkdir()
        (local / "engine" / f"atoms-{ranks.rank:05d}").write_bytes(ranks.rank.to_bytes(4, "little") * 256 * kilobytes)

    writer = CheckpointWriter(folder, ranks, CheckpointPolicy(), plan={})
    writer.start(write, step=1, state={})
    writer.finish()
    writer.close()


def _find(folder: str, ranks: Ranks) -> None:
    assert find_checkpoint(folder, ranks) is not None


def _fetch(folder: str, ranks: Ranks) -> None:
    url = next(str(path.parent) for path in Path(folder).glob("*/marker.json"))
    with fetched(ranks.share(store._read_marker(url) if ranks.first else None), ranks) as local:
        assert len(list((local / "engine").iterdir())) == ranks.world


if __name__ == "__main__":
    main()
