"""Wrote the golden shards beside it, once: run it for a codec version that has none yet, never again for one that has.

Each is a Parquet file of labels, the manifest and fitted arrays it was written with, and the arrays it must give.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.codecs.compact import fit_ids
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions, Draws
from ray_distill.labels.model.manifest import StoreManifest, TeacherIdentity, parts_of
from ray_distill.labels.model.part_specs import AnswerSpace, DistributionsSpec
from ray_distill.labels.model.ragged import running
from ray_distill.testing.labels import row_id

FOLDER = Path(__file__).parent
CLASSES = 1000
FIELDS = ("row_offsets", "position", "entry_offsets", "ids", "logp", "log_tail", "entropy")

#: Name of the golden shard: codec, estimator, options.
SHARDS = {
    "dense-2": (("dense", 2), "dense", {}),
    "topk-2": (("topk", 2), "topk", {}),
    **{
        f"compact-2-{name}": (("compact", 2), estimator, options)
        for name, estimator, options in (
            ("dense", "dense", {"lossless": False, "power": 0.25, "levels": 208}),
            ("lossless", "topk", {"lossless": True, "power": 0.25, "levels": 208}),
            ("topk", "topk", {"lossless": False, "power": 0.25, "levels": 208}),
            ("fine", "topk", {"lossless": False, "power": 0.25, "levels": 65535}),
            ("sampled", "sampled", {"lossless": False, "power": 0.25, "levels": 208}),
            ("hybrid", "hybrid", {"lossless": False, "power": 0.25, "levels": 208}),
        )
    },
}


def distributions_of(estimator: str) -> Distributions:
    """Three rows of 2, 0 and 3 positions, ragged but for dense."""
    rng = np.random.default_rng(20261124)
    classes, rows = (7 if estimator == "dense" else CLASSES), running(np.array([2, 0, 3]))
    counts = np.full(5, classes) if estimator == "dense" else np.array([9, 4, 1, 12, 7])
    ids = np.concatenate([np.sort(rng.choice(classes, count, replace=False)) for count in counts])
    owner = np.repeat(np.arange(5), counts)
    weight = rng.gamma(0.5, size=len(ids)) + 1e-6
    tail = np.zeros(5) if estimator == "dense" else rng.uniform(0.01, 0.6, 5)
    head = weight / np.bincount(owner, weight)[owner] * (1 - tail)[owner]
    with np.errstate(divide="ignore"):
        log_tail = np.log(np.stack([tail, np.sqrt(tail)], axis=1)).astype(np.float32)
    draws = (
        None
        if estimator in ("dense", "topk")
        else Draws(
            number=50,
            exponent=1.0,
            count=rng.integers(0, 300, len(ids)).astype(np.int32),
            log_normaliser=np.zeros(5, np.float32) if estimator == "sampled" else log_tail[:, 0],
        )
    )
    return Distributions(
        classes=classes,
        temperatures=(1.0, 2.0),
        row_offsets=rows,
        position=np.array([0, 1, 0, 1, 2], np.int32),
        entry_offsets=running(counts),
        ids=ids.astype(np.int32),
        logp=np.log(head).astype(np.float32),
        log_tail=log_tail,
        entropy=rng.uniform(0, 1.9, 5).astype(np.float32),
        draws=draws,
    )


def write(name: str) -> None:
    """One golden shard: the file, ``.json`` (its manifest) and ``.npz`` (its arrays)."""
    codec, estimator, options = SHARDS[name]
    exact = distributions_of(estimator)
    spec = DistributionsSpec(
        space=AnswerSpace(size=exact.classes),
        estimator=estimator,
        k=3,
        draws=50,
        temperatures=(1.0, 2.0),
        codec=codec,
        options=options,
    )
    manifest = StoreManifest(task="causal_lm", teacher=TeacherIdentity(fingerprint="golden"), parts=parts_of([spec]))
    fits = {"ids": fit_ids(exact, exact.classes)} if codec[0] == "compact" and estimator != "dense" else {}
    ids = rowids.to_numpy(pa.array([row_id(number) for number in range(3)], rowids.ROW_ID))
    data = parquet_shards.encode_labels(ids, exact, spec, fits)
    _, stored = parquet_shards.decode_labels(data, spec, fits, name)
    arrays = {field: getattr(stored, field) for field in FIELDS} | {f"fit.{key}": fit for key, fit in fits.items()}
    if stored.draws is not None:
        arrays |= {"count": stored.draws.count, "log_normaliser": stored.draws.log_normaliser}
    (FOLDER / f"{name}.parquet").write_bytes(data)
    (FOLDER / f"{name}.json").write_text(json.dumps(manifest.to_dict(), indent=1, sort_keys=True) + "\n")
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)


if __name__ == "__main__":
    for shard in sys.argv[1:]:
        write(shard)
