"""Judge tiny campaigns of every task in this process: the numbers that a refactoring must not change.

``python -m tests.labs.judging FOLDER`` writes all of them as ``everything.json``, in full precision, to compare two
states of the code on one machine; and the selection that the tests hold as ``golden.json``.
"""

import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from ray_distill.artifacts import Estimate, EvalReport, LabelSetRef, StudentRef
from ray_distill.config import Campaign
from ray_distill.labels.model.manifest import TeacherIdentity
from ray_distill.models.core.checkpoint_files import checkpoint_digest
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.runtime.labelling.teacher_quality import check_teacher
from ray_distill.runtime.stages.judge import Judged, judge_students
from ray_distill.runtime.stages.snapshot import freeze
from ray_distill.testing.models import (
    write_tiny_causal_model,
    write_tiny_image_model,
    write_tiny_seq2seq_model,
    write_tiny_text_model,
)
from tests.labs import language, pairs

CLASSES = ["bird", "cat", "dog"]
Write = Callable[[Path, int], Path]
Numbers = dict[str, Any]

TASKS: Mapping[str, Write] = {
    "text_classification": lambda folder, seed: write_tiny_text_model(folder, CLASSES, seed),
    "image_classification": lambda folder, seed: write_tiny_image_model(folder, CLASSES, seed),
    "text_multi_label": lambda folder, seed: write_tiny_text_model(
        folder, CLASSES, seed, problem_type="multi_label_classification"
    ),
    "causal_lm": lambda folder, seed: write_tiny_causal_model(folder, seed),
    "seq2seq": lambda folder, seed: write_tiny_seq2seq_model(folder, seed, architecture="bart"),
}


def judge_tiny(task: str, root: Path) -> Numbers:
    """Judge three tiny models on the test split of a tiny snapshot; return all but what a clock decides."""
    torch.set_num_threads(1)
    teacher = TASKS[task](root / "teacher", 0)
    config = Campaign.model_validate(_config(task, root, _write_rows(task, root), teacher))
    snapshot = freeze(config)
    refs = {
        arm: StudentRef(
            url=str(folder := _student(task, root, arm, seed)),
            fingerprint=checkpoint_digest(Path(folder)),
            arm=arm,
            labels=LabelSetRef(store="s", fingerprint="l", log_length=1, log_digest="d", snapshot=snapshot),
        )
        for seed, arm in enumerate(("student", "baseline_hard_labels"), 1)
    }
    champion = refs["baseline_hard_labels"]
    labelled_by = TeacherIdentity(fingerprint=load_model(str(teacher), task=task).fingerprint)
    url = str(root / "out" / "report.json")
    judged = judge_students(config, snapshot, refs, labelled_by=labelled_by, champion=champion, url=url, threads=1)
    check = check_teacher(config, snapshot, None, champion)
    return {
        "report": _numbers(judged.report),
        "answers": _answers(judged),
        "written": [[item.prompt, dict(item.answers), item.reference] for item in judged.written],
        "check": {
            "teacher": _estimates(check.teacher),
            "champion": _estimates(check.champion),
            "majority": next(iter(check.trivial.values())),
        },
    }


def _student(task: str, root: Path, arm: str, seed: int) -> Path:
    base = TASKS[task](root / f"base-{arm}", seed)
    model = load_model(str(base), task=task)
    if task == "text_multi_label":
        model = replace(model, decision={"thresholds": {"bird": 0.4, "cat": 0.7, "dog": 0.5}})
    save_model(model, root / arm, card="#", metadata={"learning_rate": 1e-3})
    return root / arm


def _write_rows(task: str, root: Path) -> Path:
    place = root / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(list(_rows(task, np.random.default_rng(3)))), place)
    return place


def _rows(task: str, generator: np.random.Generator) -> Iterator[Mapping[str, Any]]:
    """Rows with kinds to slice by; some are there twice, some have no label."""
    if task == "seq2seq":
        found = [{"article": source, "summary": target} for source, target in pairs.pairs(120, seed=3)]
    elif task == "image_classification":
        found = [{"image": _image(generator)} for _ in range(120)]
    else:
        found = [{"text": text} for text in language.sentences(120, seed=3)]
    for number, row in enumerate(found):
        label: Mapping[str, Any] = {}
        if task.endswith("classification"):
            label = {"label": None if number % 9 == 0 else CLASSES[number % 3]}
        elif task == "text_multi_label":
            label = {
                "label": None if number % 9 == 0 else [name for at, name in enumerate(CLASSES) if number >> at & 1]
            }
        for _ in range(1 + (number % 10 == 0)):
            yield {**row, **label, "kind": "ab"[number % 2]}


def _image(generator: np.random.Generator) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(generator.integers(0, 255, (28, 28), dtype=np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def _config(task: str, root: Path, source: Path, teacher: Path) -> dict[str, Any]:
    columns: dict[str, Any] = {"slices": ["kind"]}
    snapshot: dict[str, Any] = {
        "source": str(source),
        "splits": {"train": 0.1, "validation": 0.1, "calibration": 0.2, "test": 0.6},
    }
    evaluation: dict[str, Any] = {"bootstrap": 100, "latency_requests": 10, "batch": 4, "severities": [1, 3]}
    if task.endswith(("classification", "multi_label")):
        columns["label"] = "label"
        snapshot["classes"] = ["dog", "bird", "cat"]  # another order than the models'
    elif task == "causal_lm":
        evaluation |= {"prompts": "test", "new_tokens": 5, "corruptions": ["typos"]}
    else:
        columns |= {"text": "article", "target": "summary"}
        evaluation |= {"written": 20, "overlap": True, "corruptions": ["case"]}
    return {
        "campaign": "golden",
        "task": task,
        "seed": 7,
        "output": str(root / "out"),
        "snapshot": snapshot | {"columns": columns},
        "labels": {"teacher": {"model": str(teacher)}},
        "evaluation": evaluation,
    }


def _numbers(report: EvalReport) -> Numbers:
    return {
        "comparisons": _estimates(report.comparisons),
        "notes": list(report.notes),
        "models": {
            arm: {
                "metrics": _estimates(
                    {name: found for name, found in model.metrics.items() if name != "tokens_per_second"}
                ),
                "slices": {name: _estimates(found) for name, found in model.slices.items()},
                "robustness": {
                    f"{name} {severity}": _estimates(found)
                    for name, by_severity in model.robustness.items()
                    for severity, found in by_severity.items()
                },
            }
            for arm, model in report.models.items()
        },
    }


def _estimates(found: Mapping[str, Estimate]) -> Numbers:
    return {name: [item.value, item.low, item.high, item.n] for name, item in found.items()}


def _answers(judged: Judged) -> Numbers:
    """The columns of the student's answers, and what the first row holds."""
    table = judged.predictions
    first = {name: value for name, value in table.slice(0, 1).to_pylist()[0].items() if name != "row_id"}
    return {"columns": sorted(table.column_names), "rows": table.num_rows, "first": first}


def golden(found: Numbers) -> dict[str, list[float]]:
    """Select the numbers that the golden file pins: ``[value, low, high, n]`` by dotted name."""
    student = found["report"]["models"]["student"]
    selected = {
        "metrics": student["metrics"],
        "slice": student["slices"]["kind=b"],
        **{f"robustness.{name}": estimates for name, estimates in student["robustness"].items()},
        "difference": {
            name: estimate
            for name, estimate in found["report"]["comparisons"].items()
            if name.endswith("_minus_baseline_hard_labels") and "_at_" not in name
        },
        "check": found["check"]["teacher"] | {"majority": [found["check"]["majority"]]},
    }
    return {
        f"{part}.{name}": [float(f"{value:.9g}") for value in values]
        for part, estimates in selected.items()
        for name, values in sorted(estimates.items())
    }


def golden_text(found: Mapping[str, Numbers]) -> str:
    """Return the golden file: one line a number."""
    tasks = []
    for task, numbers in found.items():
        lines = [f'"{name}": {json.dumps(values)}' for name, values in golden(numbers).items()]
        tasks.append(f'"{task}": {{\n' + ",\n".join(lines) + "}")
    return "{" + ",\n".join(tasks) + "}\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for name in TASKS:
            (Path(scratch) / name).mkdir()
        everything = {name: judge_tiny(name, Path(scratch) / name) for name in TASKS}
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    whole = json.dumps(everything, indent=1, sort_keys=True)
    (folder / "everything.json").write_text(whole + "\n", encoding="utf-8")
    (folder / "golden.json").write_text(golden_text(everything), encoding="utf-8")
