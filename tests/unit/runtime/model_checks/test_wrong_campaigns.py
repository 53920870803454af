"""Campaigns with one mistake each: a dry run refuses all, with field, found and expected, before anything is spent."""

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_distill import cli
from ray_distill.config.load import put
from ray_distill.testing.models import write_tiny_causal_model, write_tiny_image_model, write_tiny_text_model

CLASSES = ("ham", "spam")
FUNCTION = "ray_distill.testing.models:tiny_text_model"


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """One mistake, and the words that its message must have: the field, what was found, what is expected."""

    changes: dict[str, Any]
    """Values by dotted path; `GONE` removes one."""
    words: tuple[str, ...]
    base: str = "rows"
    """The right campaign that is changed: of rows, or of tokens."""
    files: dict[str, str] = field(default_factory=dict)


GONE = object()


def w(base: str, changes: dict[str, Any], *words: str) -> Wrong:
    """Return a mistake."""
    return Wrong(base=base, changes=changes, words=words)


NORMED = "tests.unit.students.loop.test_lone_row:normed"

MISTAKES: dict[str, Wrong] = {
    # names
    "campaign with a slash": w("rows", {"campaign": "a/b"}, "campaign", "a/b"),
    "unknown task": w("rows", {"task": "text_clasification"}, "text_clasification", "text_classification"),
    "unknown section": w("rows", {"studnet": {}}, "studnet"),
    "unknown field": w("rows", {"labels.unit_row": 5}, "labels.unit_row"),
    "unknown loss": w("rows", {"student.losses": {"sofd": {}}}, "sofd", "soft"),
    "unknown setting of a loss": w("rows", {"student.losses.soft.temprature": 1}, "student.losses.soft", "temperature"),
    "unknown divergence": w(
        "rows", {"student.losses.soft.divergence": "kl"}, "student.losses.soft", "'kl'", "forward_kl"
    ),
    "unknown engine of the teacher": w(
        "rows", {"labels.teacher.engine": "vlm"}, "labels.teacher.engine", "vlm", "vllm"
    ),
    "unknown estimator": w("rows", {"labels.signal.estimator": "top_k"}, "labels.signal.estimator", "top_k", "topk"),
    "unknown encoding": w("rows", {"labels.signal.encoding": "zip"}, "labels.signal.encoding", "zip", "lossless"),
    "unknown corruption": w(
        "rows", {"evaluation.corruptions": ["typoes"]}, "evaluation.corruptions", "typoes", "typos"
    ),
    "unknown compiler": w("rows", {"student.training.compile": "inducter"}, "student.training.compile", "inductor"),
    "unknown dtype": w("rows", {"labels.teacher.dtype": "float64"}, "labels.teacher.dtype", "float64", "float32"),
    "unknown device": w("rows", {"labels.teacher.device": "cudaa"}, "labels.teacher.device", "cudaa", "cuda"),
    "revision that is no digest": w("rows", {"labels.teacher.revision": "main"}, "labels.teacher.revision", "sha256"),
    "other revision": w(
        "rows", {"labels.teacher.revision": "sha256:" + "0" * 64}, "labels.teacher", "sha256:000", "pinned"
    ),
    "unknown field of the student": w(
        "rows",
        {"student.model.overrides": {"num_layer": 1}},
        "student.model.overrides",
        "num_layer",
        "num_hidden_layers",
    ),
    # types
    "text for a number": w("rows", {"seed": "seven"}, "seed", "seven"),
    "list for a section": w("rows", {"student.training": [1]}, "student.training"),
    "negative size": w("rows", {"labels.unit_rows": 0}, "labels.unit_rows", "0"),
    "text for a rate": w("rows", {"student.training.learning_rate": "fast"}, "student.training.learning_rate", "fast"),
    "fraction of a worker": w("rows", {"student.training.workers": 1.5}, "student.training.workers", "1.5"),
    "missing teacher": w("rows", {"labels.teacher": GONE}, "labels.teacher", "required"),
    "negative weight of a loss": w(
        "rows", {"student.losses.soft.weight": -1}, "student.losses.soft.weight", "-1", "0 or more"
    ),
    "label that is the text": w(
        "rows", {"snapshot.columns": {"text": "label", "label": "label"}}, "snapshot.columns.label", "'label'", "text"
    ),
    "slice of a column that has a meaning": w(
        "rows", {"snapshot.columns.slices": ["label"]}, "snapshot.columns.slices", "'label'", "reserved"
    ),
    # shares
    "shares above 1": w("rows", {"snapshot.splits.train": 0.9}, "snapshot.splits"),
    "negative share": w("rows", {"snapshot.splits.test": -0.1}, "snapshot.splits", "-0.1"),
    "share of bad rows": w("rows", {"labels.max_bad_fraction": 2}, "labels.max_bad_fraction", "2"),
    "no temperature": w("rows", {"labels.signal.temperatures": [0]}, "labels.signal", "temperatures", "0"),
    "undeclared temperature": w("rows", {"student.losses.soft.temperature": 8}, "student.losses.soft", "8", "1"),
    # classes and heads
    "another class": w("rows", {"snapshot.classes": ["ham", "eggs"]}, "snapshot.classes", "eggs", "spam"),
    "multi-label teacher": w(
        "rows", {"labels.teacher.model": "sigmoids"}, "labels.teacher", "multi_label", "one class"
    ),
    "regression teacher": w("rows", {"labels.teacher.model": "regression"}, "labels.teacher", "regression", "class"),
    "teacher of one logit": w("rows", {"labels.teacher.model": "one"}, "labels.teacher", "one logit", "two classes"),
    "more classes than outputs": w(
        "rows",
        {"labels.teacher.model": "three", "snapshot.classes": GONE},
        "labels.teacher.model",
        "classifier.weight is [2, 32], expected [3, 32]",
        "id2label",
    ),
    "outputs counted from 1": w(
        "rows", {"labels.teacher.model": "from_one"}, "labels.teacher.model", "id2label", "['1', '2']", "expected 0, 1"
    ),
    "softmax for several labels": w(
        "rows", {"task": "text_multi_label"}, "labels.teacher", "problem_type", "multi_label_classification"
    ),
    "encoder without a head": w("rows", {"labels.teacher.model": "headless"}, "labels.teacher", "classifier", "head"),
    "damaged weights": w("rows", {"labels.teacher.model": "damaged"}, "labels.teacher", "damaged"),
    "teacher of images": w("rows", {"labels.teacher.model": "images"}, "labels.teacher", "images"),
    "student of images": w(
        "rows", {"student.model": {"from": "checkpoint", "model": "images"}}, "student.model", "images"
    ),
    "function that is not there": w(
        "rows", {"labels.teacher": {"model": FUNCTION + "s"}}, "labels.teacher", "tiny_text_models"
    ),
    "argument that a function lacks": w(
        "rows",
        {"labels.teacher": {"model": FUNCTION, "arguments": {"names": ["a"]}}},
        "labels.teacher.arguments",
        "names",
        "classes",
    ),
    "student function without classes": w(
        "rows", {"student.model": {"from": "module", "model": "ray_distill.testing.models:tiny_image_model"}}, "student"
    ),
    "student of a function's layers": w(
        "rows",
        {"labels.teacher": {"model": FUNCTION, "arguments": {"classes": list(CLASSES)}}},
        "student.model.from",
        "config",
        "module",
    ),
    # hidden states
    "layer that does not exist": w("rows", {"labels.hidden.layers": [7]}, "labels.hidden.layers", "7", "3"),
    "layer named twice": w("rows", {"labels.hidden.layers": [2, -1]}, "labels.hidden.layers", "twice"),
    "more components than dimensions": w(
        "rows", {"labels.hidden": {"layers": [-1], "rank": 64}}, "labels.hidden.rank", "64", "32"
    ),
    "layer of the student": w(
        "rows",
        {"labels.hidden.layers": [2], "student.losses.hidden": {"layers": {5: 2}}},
        "student.losses.hidden.layers",
        "5",
        "0 to 1",
    ),
    "states that nobody stores": w("rows", {"student.losses.hidden": {}}, "student.losses.hidden", "labels.hidden"),
    "pooled states of tokens": w(
        "tokens",
        {"labels.hidden": {"layers": [-1], "pool": "mean"}, "student.losses.hidden": {}},
        "labels.hidden.pool",
        "mean",
        "token",
    ),
    # student
    "more layers than there are": w(
        "rows", {"student.model": {"from": "teacher_layers", "keep": 9}}, "student.model.keep", "9", "2"
    ),
    "layer beyond the last": w(
        "rows",
        {"student.model": {"from": "teacher_layers", "layers": [0, 2]}},
        "student.model.layers",
        "[0, 2]",
        "2 layers",
        "from 0 to 1",
    ),
    "more layers by importance than there are": w(
        "rows",
        {"student.model": {"from": "teacher_layers", "keep": 9, "layers": "importance"}},
        "student.model.keep",
        "9",
        "2",
    ),
    "width that heads do not divide": w(
        "rows", {"student.model.overrides": {"hidden_size": 31}}, "student", "31", "attention heads"
    ),
    "width that is no number of heads": w(
        "rows",
        {"student.model": {"from": "teacher_width", "overrides": {"hidden_size": 20}}},
        "student.model.overrides",
        "hidden_size 20",
        "16 times as many",
    ),
    "adapters of a classifier": w(
        "rows", {"student.model": {"from": "teacher_layers", "keep": 1, "lora": {}}}, "student.model.lora"
    ),
    # vocabularies and lengths
    "fewer tokens for labels over tokens": w(
        "tokens", {"student.model.vocabulary": {"keep": 0.9}}, "student.model.vocabulary", "null"
    ),
    "fewer tokens beside states of tokens": w(
        "rows",
        {
            "student.model.vocabulary": {"tokens": 109},
            "labels.hidden": {"layers": [-1], "pool": "token"},
            "student.losses.hidden": {},
        },
        "student.model.vocabulary",
        "pool is token",
        "mean, cls or last",
    ),
    "fewer tokens than must stay": w(
        "rows", {"student.model.vocabulary": {"tokens": 5}}, "student.model.vocabulary.tokens", "5", "109"
    ),
    "another tokenizer": w(
        "tokens",
        {"student.model": {"from": "checkpoint", "model": "other_tokens"}},
        "student.model",
        "another tokenizer",
        "tokens",
    ),
    "vocabulary below the tokenizer": w(
        "tokens", {"student.model.overrides.vocab_size": 200}, "student.model", "200", "261", "264"
    ),
    "draws from a larger vocabulary": w(
        "tokens",
        {"student.model.overrides.vocab_size": 262, "labels.signal.estimator": "sampled"},
        "student",
        "264",
        "262",
        "resize_token_embeddings",
    ),
    "embeddings of another vocabulary": w(
        "tokens",
        {"student.model": {"embeddings": "copy", "overrides": {"vocab_size": 262}}},
        "student.model.embeddings",
        "262",
        "264",
    ),
    "more classes than tokens": w(
        "tokens", {"labels.signal": {"estimator": "topk", "k": 300}}, "labels.signal.k", "300", "264"
    ),
    "length of the special tokens": w("rows", {"labels.teacher.max_length": 2}, "labels.teacher", "max_length 2", "3"),
    "length of one token": w("tokens", {"labels.teacher.max_length": 1}, "labels.teacher", "max_length 1", "2"),
    "length of a student's special tokens": w(
        "rows", {"student.model.max_length": 1}, "student.model", "max_length 1", "3"
    ),
    "length beyond the positions": w("rows", {"labels.teacher.max_length": 512}, "labels.teacher", "512", "64"),
    "length of the student": w("tokens", {"student.model.max_length": 16}, "student.model.max_length", "16", "128"),
    "fewer positions than the teacher reads": w(
        "tokens", {"student.model.overrides.max_position_embeddings": 32}, "student.model", "32", "128"
    ),
    # batch sizes
    "batch that workers cannot share": w(
        "rows", {"student.training.workers": 3}, "student.training", "global_batch", "3"
    ),
    "batch norm on single rows": w(
        "rows",
        {"student.model": {"from": "module", "model": NORMED}, "student.training.micro_batch": 1},
        "student.training.micro_batch",
        "batch norm",
        "2 or more",
    ),
    "group that a pass splits": w(
        "rows",
        {"labels.hidden.layers": [-1], "student.losses.rkd_distance": {"group": 16}, "student.training.micro_batch": 8},
        "student.training.micro_batch",
        "8",
        "16",
    ),
    "less tokens than a sequence": w(
        "tokens", {"student.training.packed": 64, "student.training.micro_tokens": 32}, "micro_tokens", "32", "64"
    ),
    "activations that cannot be recomputed": w(
        "rows",
        {"student.model": {"from": "module", "model": FUNCTION}, "student.training.activation_checkpointing": True},
        "student.training.activation_checkpointing",
    ),
    # gates, aliases
    "unknown metric": w("rows", {"gate.limits": {"acuracy": {"min": 0.9}}}, "gate.limits", "acuracy", "accuracy"),
    "unknown arm": w("rows", {"gate.beat": ["baseline"]}, "gate.beat", "baseline", "baseline_hard_labels"),
    "empty limit": w("rows", {"gate.limits": {"accuracy": {}}}, "gate.limits.accuracy", "min"),
    "percentage for a share": w(
        "rows", {"gate.limits": {"accuracy": {"min": 85}}}, "gate.limits.accuracy.min", "85", "between 0 and 1", "0.85"
    ),
    "limit that is no number": w(
        "rows", {"gate.limits": {"accuracy": {"min": float("nan")}}}, "gate.limits.accuracy.min", "finite", "nan"
    ),
    "alias of MLflow's own": w("rows", {"gate.alias": "latest"}, "gate.alias", "latest"),
    "alias like a version": w("rows", {"gate.alias": "v2"}, "gate.alias", "v2"),
    "model name with a slash": w("rows", {"gate.model_name": "team/intent"}, "gate.model_name", "team/intent"),
    "floor of an unknown metric": w(
        "rows", {"labels.check.limits": {"acc": {"min": 0.9}}}, "labels.check.limits", "acc", "accuracy"
    ),
    # paths
    "output that is a file": w("rows", {"output": "rows.jsonl/out"}, "output", "rows.jsonl", "is a file", "folder"),
    "store of MLflow 2": w("rows", {"tracking": {"uri": "file:mlruns"}}, "tracking.uri", "file:mlruns", "sqlite:///"),
    "scheme of another library": w(
        "rows", {"tracking": {"uri": "postgres://me:secret@db/runs"}}, "tracking.uri", "me:…@db", "postgresql://"
    ),
    "no such source": w("rows", {"snapshot.source": "nowhere.jsonl"}, "nowhere.jsonl"),
    "no such teacher": w("rows", {"labels.teacher.model": "nowhere"}, "labels.teacher.model", "nowhere"),
    "empty teacher": w("rows", {"labels.teacher.model": "empty"}, "labels.teacher.model", "empty", "config.json"),
    "no such student": w(
        "rows", {"student.model": {"from": "checkpoint", "model": "nowhere"}}, "student.model", "nowhere"
    ),
    "no such label set": w(
        "rows",
        {"student.mixture": {"how": "source", "others": [{"labels": "nowhere.json"}]}},
        "student.mixture.others.0.labels",
        "nowhere.json",
    ),
    "no such ceiling": w("rows", {"student.ceiling": "nowhere.jsonl"}, "student.ceiling", "nowhere.jsonl"),
    "weights of pickles": w("rows", {"labels.teacher.model": "pickles"}, "labels.teacher", "pytorch_model.bin"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, and right and wrong models, written once."""
    root = tmp_path_factory.mktemp("campaigns")
    rows = [{"text": f"row {number}", "label": CLASSES[number % 2]} for number in range(40)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_tiny_text_model(root / "teacher", CLASSES, 0)
    for name, changes, classes in (
        ("sigmoids", {"problem_type": "multi_label_classification"}, CLASSES),
        ("regression", {"problem_type": "regression"}, CLASSES),
        ("one", {}, CLASSES[:1]),
    ):
        write_tiny_text_model(root / name, classes, 0, **changes)
    write_tiny_causal_model(root / "speaker", 0)
    write_tiny_causal_model(root / "other_tokens", 0)
    _rename_token(root / "other_tokens" / "tokenizer.json")
    write_tiny_image_model(root / "images", CLASSES, 0)
    _without_head(root / "teacher", root / "headless")
    _rename_classes(root / "teacher", root / "three", {0: "ham", 1: "spam", 2: "eggs"})
    _rename_classes(root / "teacher", root / "from_one", {1: "ham", 2: "spam"})
    shutil.copytree(root / "teacher", root / "damaged")
    (root / "damaged" / "model.safetensors").write_bytes(b"nothing")
    (root / "empty").mkdir()
    shutil.copytree(root / "teacher", root / "pickles")
    (root / "pickles" / "model.safetensors").rename(root / "pickles" / "pytorch_model.bin")
    return root


def _rename_token(path: Path) -> None:
    value = json.loads(path.read_text())
    vocabulary = value["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(value))


def _rename_classes(source: Path, target: Path, names: dict[int, str]) -> None:
    shutil.copytree(source, target)
    value = json.loads((target / "config.json").read_text())
    value |= {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    (target / "config.json").write_text(json.dumps(value))


def _without_head(source: Path, target: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    weights = load_file(source / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})


def _right(folder: Path, base: str) -> dict[str, Any]:
    """Return a campaign that nothing is wrong with."""
    training = {"global_batch": 8, "micro_batch": 8, "engine": "torch"}
    if base == "tokens":
        return {
            "campaign": "right",
            "task": "causal_lm",
            "output": str(folder / "out"),
            "snapshot": {"source": "rows.jsonl"},
            "labels": {"teacher": {"model": "speaker"}},
            "student": {"model": {"overrides": {"num_hidden_layers": 1}}, "losses": {"soft": {}}, "training": training},
        }
    return {
        "campaign": "right",
        "task": "text_classification",
        "output": str(folder / "out"),
        "snapshot": {
            "source": "rows.jsonl",
            "columns": {"label": "label"},
            "classes": list(CLASSES),
            "splits": {"train": 0.7, "validation": 0.1, "calibration": 0.1, "test": 0.1},
        },
        "labels": {"teacher": {"model": "teacher"}},
        "student": {"model": {"overrides": {"num_hidden_layers": 1}}, "losses": {"soft": {}}, "training": training},
    }


def _changed(value: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    value = copy.deepcopy(value)
    for path, item in changes.items():
        if item is GONE:
            section, _, name = path.rpartition(".")
            del value[section][name]
        else:
            put(value, path, copy.deepcopy(item))
    return value


@pytest.fixture
def dry_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Return a function from a campaign to exit status and messages of its dry run."""
    monkeypatch.chdir(folder)

    def run(value: dict[str, Any]) -> tuple[int, str]:
        (folder / "campaign.yaml").write_text(yaml.safe_dump(value))
        capsys.readouterr()
        status = cli.main(["run", "campaign.yaml", "--dry-run"])
        found = capsys.readouterr()
        return status, found.out if status == 0 else found.err

    yield run


@pytest.mark.parametrize("base", ["rows", "tokens"])
def test_a_right_campaign_passes(folder: Path, dry_run: Any, base: str) -> None:
    """Each mistake below is the only one of its campaign."""
    assert dry_run(_right(folder, base))[0] == 0
    assert not (folder / "out").exists()


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_refused_before_anything_is_spent(folder: Path, dry_run: Any, mistake: Wrong) -> None:
    """With one error, on one line a mistake, that has the field, what was found and what is expected."""
    status, message = dry_run(_changed(_right(folder, mistake.base), mistake.changes))
    assert status == 1
    assert message.startswith("error: ") and message.count("error: ") == 1 and "Traceback" not in message
    assert len(message.strip().splitlines()) <= 2
    assert [word for word in mistake.words if word not in message] == [], message
    assert not (folder / "out").exists()


def test_the_list_is_long_enough() -> None:
    """Sixty wrong campaigns at the least."""
    assert len(MISTAKES) >= 60
