"""The fused head and sparse divergence against whole logits: memory and time of one forward and backward pass.

    python -m tests.benchmarks.bench_fused                      2,048 tokens × 151,936 classes × width 1,024, k = 64
    python -m tests.benchmarks.bench_fused --tokens 256 --classes 20000 --width 128

Each contestant runs in a process of its own, so that its peak of resident memory is its own: what it adds to its
inputs, less the gradients in hidden states and weight, which all of them return. They take turns; times are the least
of the repetitions. Baselines in the same run: the dense KL (``F.linear``, ``log_softmax``, ``F.kl_div`` against a whole
teacher distribution, which is an input), and torch's ``F.linear_cross_entropy``, the faster of its plain form and of
its chunked one with chunks as large as ours.
"""

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ray_distill.losses.base import LossBatch, SparseTargets
from ray_distill.losses.cross_entropy import Hard
from ray_distill.losses.fused import CHUNK_ELEMENTS, Part, fused_loss
from ray_distill.losses.soft import Soft

GIB = 1 << 30

#: Its parts run in processes of their own, started from the root, where `tests` is found.
ROOT, MODULE = Path(__file__).parents[2], "tests.benchmarks.bench_fused"


def sparse(logp_NV: Tensor, k: int) -> SparseTargets:
    """The k likeliest classes and the tail."""
    logp_NK, ids_NK = logp_NV.topk(k, dim=-1)
    tail_NV = logp_NV.scatter(-1, ids_NK, -torch.inf)
    return SparseTargets(
        classes=logp_NV.shape[1],
        ids_NK=ids_NK,
        logp_NK=logp_NK,
        temperatures=(1.0,),
        log_tail_NT=tail_NV.logsumexp(-1, keepdim=True),
    )


def teacher(tokens: int, classes: int) -> Tensor:
    """Log-probabilities of a made-up teacher, a few of them likely."""
    logits_NV = torch.randn(tokens, classes, generator=torch.Generator().manual_seed(1)).mul_(2.5)
    return logits_NV.sub_(logits_NV.logsumexp(-1, keepdim=True))


def contestant(name: str, tokens: int, classes: int, width: int, k: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of hidden states and weight, with its targets made beforehand."""
    labels = torch.randint(0, classes, (tokens,), generator=torch.Generator().manual_seed(2))
    if name.startswith("torch_ce"):
        options = (
            None
            if name == "torch_ce"
            else torch.nn.LinearCrossEntropyOptions(
                batch_chunk_size=max(1, CHUNK_ELEMENTS // classes), chunking_method=None
            )
        )
        return lambda hidden, weight: functional.linear_cross_entropy(
            hidden, weight, labels, reduction="sum", options=options
        )
    if name == "dense_kl":
        logp_NV = teacher(tokens, classes)
        return lambda hidden, weight: functional.kl_div(
            functional.linear(hidden, weight).log_softmax(-1), logp_NV, reduction="sum", log_target=True
        )
    batch = LossBatch(
        labels_B=labels,
        targets=sparse(teacher(tokens, classes), k),
        distil_B=torch.ones(tokens, dtype=torch.bool),
        example_weight_B=torch.ones(tokens),
    )
    parts = [Part(loss=Soft(), factor=1.0)]
    if name == "fused_kl_ce":
        parts.append(Part(loss=Hard(), factor=0.1))
    return lambda hidden, weight: fused_loss(hidden, weight, None, batch, parts=parts)[0]


class Peak:
    """The greatest resident memory of this process while it is entered, above what it was before."""

    def __enter__(self) -> "Peak":
        self.before = self.most = _resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.most = max(self.most, _resident())


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def work(name: str, tokens: int, classes: int, width: int, k: int) -> None:
    """One contestant: measures itself once for each line it reads, and answers with JSON."""
    loss = contestant(name, tokens, classes, width, k)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(tokens, width, generator=generator).requires_grad_()
    weight = (torch.randn(classes, width, generator=generator) * width**-0.5).requires_grad_()
    kept = (hidden.numel() + weight.numel()) * 4
    say("ready")
    for _ in sys.stdin:
        hidden.grad = weight.grad = None
        with Peak() as peak:
            start = time.perf_counter()
            loss(hidden, weight).backward()
            seconds = time.perf_counter() - start
        say(json.dumps({"seconds": seconds, "bytes": peak.most - peak.before - kept}))


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def measure(names: list[str], repeat: int, sizes: list[str]) -> dict[str, dict[str, float]]:
    """Least seconds and greatest bytes of each contestant; they take turns."""
    runs = {
        name: subprocess.Popen(
            [sys.executable, "-m", MODULE, "--work", name, *sizes],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for run in runs.values():
        assert run.stdout is not None and run.stdout.readline() == "ready\n"
    for _ in range(repeat):
        for name, run in runs.items():
            assert run.stdin is not None and run.stdout is not None
            run.stdin.write("\n")
            run.stdin.flush()
            found[name].append(json.loads(run.stdout.readline()))
    for run in runs.values():
        run.communicate()
    return {
        name: {"seconds": min(one["seconds"] for one in each), "bytes": max(one["bytes"] for one in each)}
        for name, each in found.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line of ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"tokens": 2048, "classes": 151_936, "width": 1024, "k": 64}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--work", default="")
    asked = parser.parse_args(argv)
    chosen = {name: getattr(asked, name) for name in sizes}
    if asked.work:
        work(asked.work, **chosen)
        return
    flags = [part for name, value in chosen.items() for part in (f"--{name}", str(value))]
    found = measure(["dense_kl", "fused_kl", "fused_kl_ce", "torch_ce", "torch_ce_chunked"], asked.repeat, flags)
    for name, one in found.items():
        say(f"  {name:16s} {one['seconds']:8.3f} s  {one['bytes'] / GIB:7.3f} GiB beside the gradients")
    ours, dense = found["fused_kl"], found["dense_kl"]
    theirs = min(found["torch_ce"]["seconds"], found["torch_ce_chunked"]["seconds"])
    say(
        f"fused head {asked.tokens} x {asked.classes} x {asked.width}, k={asked.k}: "
        f"{ours['seconds'] / dense['seconds']:.2f} of the dense KL's time, "
        f"1/{dense['bytes'] / max(ours['bytes'], 1):.1f} of its memory; {ours['seconds'] / theirs:.2f} of the time of "
        "torch's linear_cross_entropy; with hard cross-entropy beside it "
        f"{found['fused_kl_ce']['seconds'] / ours['seconds']:.2f} of itself"
    )


if __name__ == "__main__":
    main()
