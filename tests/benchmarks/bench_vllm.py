"""Labels of the vLLM engine against those of the transformers engine, beside what either differs from itself by.

    python -m tests.benchmarks.bench_vllm smollm --python /opt/vllm/bin/python [--rows 32] [--dtype bfloat16]
    python -m tests.benchmarks.bench_vllm tiny --python /opt/vllm/bin/python

The texts are docstrings of the standard library. Each engine answers in a process of its own, in batches of 16 texts
and text by text: batched inference is not bit-exact, so what lies between two answers of one engine is the yardstick
for what lies between the engines. Distances are over the classes that both answers have; KL counts all others as one.
The last line is what vLLM's lists of numbers cost to become labels, and what vLLM took to make them.
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

import numpy as np

#: Its parts run in processes of their own, started from the root, where `tests` is found.
ROOT, MODULE = Path(__file__).parents[2], "tests.benchmarks.bench_vllm"
BATCH = 16


def write_model(name: str, folder: Path) -> Path:
    """SmolLM2-135M-Instruct out of its GGUF (needs gguf and accelerate), or a tiny untrained one.

    Both as safetensors, which both engines read.
    """
    from ray_distill.testing.models import write_tiny_causal_model

    if name == "tiny":
        return write_tiny_causal_model(
            folder, seed=0, hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=1
        )
    import torch
    import transformers

    from tests.labs.labelling import smollm_file

    source, file = smollm_file()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    del plain.config.quantization_config
    plain.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
    return folder


def encoded_of(texts: Path, config: Any) -> Any:
    """The texts as tokens."""
    import pyarrow as pa

    from ray_distill.labels.model import rowids
    from ray_distill.models.io.load import load_processor
    from ray_distill.tasks.catalogue import get_task
    from ray_distill.testing.labels import row_id

    found = json.loads(texts.read_text())
    ids = pa.array([row_id(number) for number in range(len(found))], rowids.ROW_ID)
    processor = load_processor(config, task="causal_lm")
    return get_task("causal_lm").inputs.encode(pa.table({"row_id": ids, "text": found}), processor)


def answer(given: argparse.Namespace) -> dict[str, float]:
    """Ask one engine for all texts, in batches and one by one; the answers go to files, times to the caller."""
    import torch

    from ray_distill.config import TeacherConfig
    from ray_distill.runtime.labelling.batching import answer_all
    from ray_distill.teachers.base import LabelRequest
    from ray_distill.teachers.engines import open_teacher

    torch.set_num_threads(1)
    config = TeacherConfig(
        model=str(given.model),
        engine=given.answer,
        dtype=given.dtype,
        max_length=given.tokens,
        vllm={"gpu_memory_utilization": 0.15},
    )
    encoded = encoded_of(given.texts, config)
    teacher, ask = (
        open_teacher(config, task="causal_lm"),
        LabelRequest(estimator="topk", k=given.k, temperatures=(1.0,)),
    )
    for batch in (BATCH, 1):
        ids, signal, rejected = answer_all(teacher, encoded, ask, batch)
        assert not rejected, rejected
        found = signal.take(np.argsort(ids.to_pylist(), kind="stable").astype(np.int64)).distributions
        assert found is not None
        np.savez(
            given.out / f"{given.answer}-{batch}.npz",
            ids=found.ids.reshape(-1, given.k),
            logp=found.logp.reshape(-1, given.k),
            log_tail=found.log_tail[:, 0],
            position=found.position,
        )
    return converting(teacher, encoded, given.k) if given.answer == "vllm" else {}


def converting(teacher: Any, encoded: Any, k: int) -> dict[str, float]:
    """Seconds that vLLM takes for all texts, and that its answer takes to become labels."""
    from ray_distill.tasks.catalogue import get_task
    from ray_distill.teachers.vllm_reduce import flat_of, reduce_flat
    from ray_distill.teachers.vllm_teacher import generate, scoring

    tokens, answered = encoded.features["input_ids"], get_task("causal_lm").answers.store.positions(encoded)
    prompts = [
        tokens.values[start : stop - 1].tolist()
        for start, stop in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    ]
    start_s = time.perf_counter()
    outputs = generate(teacher.engine, prompts, scoring(k))
    made_s = time.perf_counter()
    found = flat_of(outputs, k)
    row = np.repeat(np.arange(len(prompts)), np.diff(answered.offsets))
    reduce_flat(
        found,
        found.row_offsets[row] + answered.values,
        row_offsets=answered.offsets,
        position=answered.values,
        vocabulary=teacher.space.size,
    )
    return {"made": made_s - start_s, "converted": time.perf_counter() - made_s, "positions": len(answered.values)}


def distances(one: Any, other: Any) -> dict[str, float]:
    """How far two answers are apart, over positions: the second is taken to be the truth."""
    assert np.array_equal(one["position"], other["position"])
    positions, k = one["ids"].shape
    rows = np.arange(positions)[:, None] * (1 << 20)
    _, at, to = np.intersect1d(rows + one["ids"], rows + other["ids"], assume_unique=True, return_indices=True)
    logq, logp = one["logp"].reshape(-1)[at].astype(float), other["logp"].reshape(-1)[to].astype(float)
    p, q = np.exp(logp), np.exp(logq)
    rest_p, rest_q = (np.maximum(1 - np.bincount(at // k, values, minlength=positions), 1e-6) for values in (p, q))
    kl = np.bincount(at // k, p * (logp - logq), minlength=positions) + rest_p * np.log(rest_p / rest_q)
    best = [part["ids"][np.arange(positions), part["logp"].argmax(1)] for part in (one, other)]
    tail = np.abs(np.exp(one["log_tail"].astype(float)) - np.exp(other["log_tail"].astype(float)))
    moved = np.abs(logp - logq)
    return {
        "top-1": float(np.mean(best[0] == best[1])),
        "same k": len(at) / (positions * k),
        "mean |Δlogp|": float(moved.mean()),
        "max": float(moved.max()),
        "mean KL": float(kl.mean()),
        "max KL": float(kl.max()),
        "mean |Δtail|": float(tail.mean()),
        "max |Δtail|": float(tail.max()),
    }


def show(name: str, found: dict[str, float]) -> str:
    """One line of the table."""
    values = [
        f"{key} {value:.4%}" if key in ("top-1", "same k") else f"{key} {value:.1e}" for key, value in found.items()
    ]
    return f"{name:<38}" + "  ".join(values)


def ask(engine: str, python: str, given: argparse.Namespace, folder: Path) -> dict[str, float]:
    """`answer` in a process of its own."""
    done = subprocess.run(
        [
            python,
            "-m",
            MODULE,
            given.what,
            "--answer",
            engine,
            "--model",
            given.model or folder / "model",
            "--texts",
            folder / "texts.json",
            "--out",
            folder,
            "--k",
            str(given.k),
            "--tokens",
            str(given.tokens),
            "--dtype",
            given.dtype,
        ],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(given: argparse.Namespace) -> str:
    """The whole table."""
    from tests.labs.labelling import docstrings

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.model is None:
            write_model(given.what, folder / "model")
        (folder / "texts.json").write_text(json.dumps(docstrings()[: given.rows]))
        ask("transformers", sys.executable, given, folder)
        times = ask("vllm", given.python, given, folder)
        answers = {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}
    positions = len(answers["vllm-1"]["position"])
    each = f"batches of {BATCH} and of 1"
    return "\n".join(
        [
            f"{given.what}, {given.dtype}: {positions:,} positions of {given.rows} docstrings, k = {given.k}",
            show("vllm against transformers", distances(answers[f"vllm-{BATCH}"], answers[f"transformers-{BATCH}"])),
            show(f"transformers, {each}", distances(answers["transformers-1"], answers[f"transformers-{BATCH}"])),
            show(f"vllm, {each}", distances(answers["vllm-1"], answers[f"vllm-{BATCH}"])),
            f"conversion {times['positions'] / times['converted']:,.0f} positions/s, vLLM "
            f"{times['positions'] / times['made']:,.0f}: {times['converted'] / times['made']:.2%} of its time",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, or answer for one engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("smollm", "tiny"))
    parser.add_argument("--python", help="interpreter of vLLM's environment")
    parser.add_argument("--model", type=Path, help="a checkpoint to take instead of making one")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a text, at most")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    for name, kind in (("--answer", str), ("--texts", Path), ("--out", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    sys.stdout.write((json.dumps(answer(given)) if given.answer else compare(given)) + "\n")


if __name__ == "__main__":
    main()
