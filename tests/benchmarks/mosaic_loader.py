"""The baseline of `bench_loader` that needs an environment of its own: MDS shards read by ``mosaicml-streaming``.

    PYTHON tests/benchmarks/mosaic_loader.py FOLDER UNIT BATCH

FOLDER holds the arrays that the benchmark wrote, the labels of UNIT examples a block. Nothing of this project is
imported. An environment without GPUs::

    python3 -m venv ENV && ENV/bin/pip install --no-deps mosaicml-streaming
    ENV/bin/pip install torch 'transformers<5' 'numpy<2.2' 'xxhash<4' brotli python-snappy zstd pillow catalogue \
        paramiko boto3
"""

import json
import os
import resource
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import transformers.feature_extraction_utils  # noqa: F401  (before the stand-ins, which it would look into)

# Its data sets of images want torchvision, whose public wheels do not load beside a CPU build of torch. The loader that
# is measured here uses nothing of it.
for _name, _wanted in {
    "torchvision": (),
    "torchvision.datasets": ("VisionDataset",),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": ("to_tensor",),
}.items():
    sys.modules[_name] = types.ModuleType(_name)
    for _stand_in in _wanted:
        setattr(sys.modules[_name], _stand_in, object)

from streaming import MDSWriter, StreamingDataset  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402


def main() -> None:
    folder, unit, batch = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory() as name:
        write(folder, Path(name) / "mds", unit)
        os.sync()
        both = [read(str(Path(name) / "mds"), batch, workers) for workers in (0, 2)]
    sys.stdout.write(json.dumps({name: max(found[name] for found in both) for name in both[0]}) + "\n")


def write(folder: Path, target: Path, unit: int) -> None:
    """One sample an example; shards of its default size, not compressed, which reads fastest."""
    arrays = np.load(folder / "blocks.npz")
    tokens, ids, logp = arrays["tokens"], arrays["ids"], arrays["logp"]
    wide = ids.shape[1] // unit
    with MDSWriter(
        out=str(target),
        columns={
            "input_ids": f"ndarray:int32:{tokens.shape[1]}",
            "ids": f"ndarray:int32:{wide}",
            "logp": f"ndarray:float32:{wide}",
        },
    ) as out:
        for row in range(len(tokens)):
            block, at = row // unit % len(ids), row % unit * wide
            out.write(
                {"input_ids": tokens[row], "ids": ids[block, at : at + wide], "logp": logp[block, at : at + wide]}
            )


def read(local: str, batch: int, workers: int) -> dict[str, float]:
    """Examples a second, and a CPU second of this process and its workers."""
    data = StreamingDataset(local=local, shuffle=True, shuffle_seed=0, batch_size=batch)
    start, cpu, seen = time.perf_counter(), cpu_seconds(), 0
    for found in DataLoader(data, batch_size=batch, num_workers=workers):
        ids, logp = found["ids"].reshape(-1, 64), found["logp"].reshape(-1, 64)
        assert ids.shape == logp.shape
        seen += len(found["input_ids"])
    return {"rate": seen / (time.perf_counter() - start), "cpu_rate": seen / (cpu_seconds() - cpu)}


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


if __name__ == "__main__":
    main()
