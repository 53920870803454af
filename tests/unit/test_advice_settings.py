"""Advice about settings: what a message proposes is put into the campaign, which is then accepted."""

import copy
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_distill.cli.campaign_file.load import load_campaign
from ray_distill.config.load import put
from ray_distill.config.trials import expand
from ray_distill.errors import ConfigError, DistillError
from ray_distill.runtime.stages.preflight import check

GONE = object()

ROWS: Mapping[str, Any] = {
    "campaign": "c",
    "task": "text_classification",
    "snapshot": {"source": "rows.jsonl", "columns": {"label": "label"}},
    "labels": {
        "teacher": {"model": "ray_distill.testing.models:tiny_text_model", "arguments": {"classes": ["a", "b"]}}
    },
}
TOKENS: Mapping[str, Any] = {
    "campaign": "c",
    "task": "causal_lm",
    "snapshot": {"source": "rows.jsonl"},
    "labels": {"teacher": {"model": "models:language"}, "signal": {"k": 8}},
}
SETS: Mapping[str, Any] = {**ROWS, "task": "text_multi_label"}
PAIRS: Mapping[str, Any] = {**TOKENS, "task": "seq2seq", "snapshot": {"source": "r", "columns": {"target": "target"}}}

#: Base, what is wrong in it, what the message advises, and that, done.
Case = tuple[Mapping[str, Any], dict[str, Any], str, dict[str, Any]]

CASES: dict[str, Case] = {
    # leave it out
    "a section left empty": (ROWS, {"student": {"training": None}}, "leave it out for its default", {"student": GONE}),
    "sequences of a classifier": (
        ROWS,
        {"sequences": {"method": "sample"}},
        "writes no texts: leave the section out",
        {"sequences": GONE},
    ),
    "sequences of sets": (
        SETS,
        {"sequences": {"method": "sample"}, "labels.signal": {"estimator": "dense", "encoding": "lossless"}},
        "writes no texts; leave the section out",
        {"sequences": GONE},
    ),
    "packed rows of a classifier": (
        ROWS,
        {"student.training.packed": 64},
        "only language models have it.*leave it out",
        {"student.training.packed": GONE},
    ),
    "head of a language model": (
        TOKENS,
        {"labels.teacher.head": {}},
        "labels.teacher.head: .*leave it out",
        {"labels.teacher.head": GONE},
    ),
    "views of a language model": (
        TOKENS,
        {"snapshot.augment": {"views": 1}},
        "snapshot.augment: .*damaged texts; leave it out",
        {"snapshot.augment": GONE},
    ),
    "neighbours of a function": (
        ROWS,
        {"snapshot.augment": {"kinds": {"neighbours": 0.2, "cut": 0.5}}},
        "snapshot.augment.kinds: .* is a function.*; name other kinds for this teacher",
        {"snapshot.augment.kinds": {"cut": 0.5}},
    ),
    "classes of a language model": (
        TOKENS,
        {"snapshot.classes": ["a", "b"]},
        "has no classes; leave it out",
        {"snapshot.classes": GONE},
    ),
    "target of a classifier": (
        ROWS,
        {"snapshot.columns.target": "t"},
        "writes no targets; leave it out",
        {"snapshot.columns.target": GONE},
    ),
    "prompts of pairs": (
        PAIRS,
        {"evaluation.prompts": ["once"]},
        "go on from no prompt; leave it out",
        {"evaluation.prompts": GONE},
    ),
    "packed pairs": (PAIRS, {"student.training.packed": 64}, "leave it out", {"student.training.packed": GONE}),
    # set it to
    "estimator of sets": (
        SETS,
        {"labels.signal": {"estimator": "topk", "encoding": "lossless"}},
        "labels.signal.estimator is topk.*set it to dense",
        {"labels.signal.estimator": "dense"},
    ),
    "pool of a language model": (
        TOKENS,
        {"labels.hidden": {"layers": [-1], "pool": "mean"}, "student.losses": {"hidden": {}}},
        "set it to token, or leave the losses of hidden states out",
        {"labels.hidden.pool": "token"},
    ),
    "pool of a language model, without the loss": (
        TOKENS,
        {"labels.hidden": {"layers": [-1], "pool": "mean"}, "student.losses": {"hidden": {}}},
        "set it to token, or leave the losses of hidden states out",
        {"student.losses": GONE},
    ),
    "hidden states that nobody stores": (
        ROWS,
        {"student.losses": {"soft": {}, "hidden": {}}},
        "set labels.hidden.layers",
        {"labels.hidden.layers": [-1]},
    ),
    "undeclared temperature": (
        ROWS,
        {"student.losses": {"soft": {"temperature": 8}}},
        "or declare it in labels.signal.temperatures",
        {"labels.signal.temperatures": [1, 8]},
    ),
    "source without a target": (
        PAIRS,
        {"snapshot.columns": GONE},
        "snapshot.columns.target: .* needs the column",
        {"snapshot.columns": {"target": "target"}},
    ),
    "a metric that needs benchmarks": (
        TOKENS,
        {"gate.limits": {"lm_eval_x": {"min": 0.1}}},
        "with evaluation.lm_eval: set it",
        {"evaluation.lm_eval": {"folder": "tasks", "tasks": ["x"]}},
    ),
    # write it otherwise
    "a home folder of a database": (
        ROWS,
        {"tracking.uri": "sqlite:///~/m.db"},
        "write the whole path",
        {"tracking.uri": "sqlite:////home/ann/m.db"},
    ),
    "memory": (ROWS, {"output": "memory://out"}, "name a folder, or a URL of an object store", {"output": "out"}),
    "a placeholder": (ROWS, {"output": "{{ x }}/out"}, "write the value", {"output": "/home/ann/out"}),
    "a reserved alias": (ROWS, {"gate.alias": "latest"}, "such as champion", {"gate.alias": "champion"}),
    "MLflow's plain folder": (
        ROWS,
        {"tracking.uri": "./mlruns"},
        "use http.*sqlite:///file.db",
        {"tracking.uri": "sqlite:///file.db"},
    ),
    "a share in percent": (
        ROWS,
        {"gate.limits": {"accuracy": {"min": 97}}},
        "write 0.97 for 97 %",
        {"gate.limits.accuracy.min": 0.97},
    ),
    "a limit without a number": (
        ROWS,
        {"gate.limits": {"accuracy": {}}},
        "to leave a metric without a limit, set it to null",
        {"gate.limits.accuracy": None},
    ),
    "two settings of one thing": (
        ROWS,
        {"labels.hidden": {"layers": [-1], "rank": 4, "variance": 0.9}},
        "give one",
        {"labels.hidden.variance": GONE},
    ),
    "groups without a column": (
        ROWS,
        {"snapshot.splits.by": "group"},
        "columns.group is not set",
        {"snapshot.columns.group": "user"},
    ),
    "greedy candidates": (
        TOKENS,
        {"sequences": {"method": "greedy", "candidates": 2}},
        "take sample or beam",
        {"sequences.method": "sample"},
    ),
    "losses without a weight": (
        ROWS,
        {"student.losses": {"soft": {"weight": 0}}},
        "give one of them a weight",
        {"student.losses.soft.weight": 1},
    ),
    "the label as text": (
        ROWS,
        {"snapshot.columns": {"text": "label", "label": "label"}},
        "name another column for one of them",
        {"snapshot.columns.text": "words"},
    ),
    "a teacher that is not there": (
        ROWS,
        {"labels.teacher": {"model": "nowhere/teacher"}},
        "does not exist; give a checkpoint's folder or URL, or module:function",
        {"labels.teacher.model": "ray_distill.testing.models:tiny_text_model"},
    ),
    "a misspelt corruption": (
        ROWS,
        {"evaluation.corruptions": ["typoes"]},
        "did you mean typos",
        {"evaluation.corruptions": ["typos"]},
    ),
    "too many trials": (
        ROWS,
        {"sweep": {"grid": {"seed": list(range(3000))}}},
        "set samples, or leave values out",
        {"sweep.samples": 3},
    ),
    "a sweep without trials": (
        ROWS,
        {},
        "has no section `sweep`: give it a grid",
        {"sweep": {"grid": {"seed": [1, 2]}}},
    ),
}


def _written(base: Mapping[str, Any], *changes: Mapping[str, Any]) -> str:
    value = copy.deepcopy(dict(base))
    for name, change in ((name, change) for each in changes for name, change in each.items()):
        if change is not GONE:
            put(value, name, copy.deepcopy(change))
            continue
        *parents, last = name.split(".")
        section = value
        for parent in parents:
            section = section[parent]
        section.pop(last, None)
    return yaml.safe_dump(value)


def _accepted(path: Path, *, sweep: bool) -> None:
    config = load_campaign(str(path), [])
    check(config, teacher=config.task == "text_classification")
    if sweep:
        expand(config)


@pytest.mark.parametrize("name", CASES)
def test_what_a_message_proposes_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Refused with its advice, then changed as it says, and nothing else."""
    monkeypatch.chdir(tmp_path)
    base, wrong, says, right = CASES[name]
    path, sweep = tmp_path / "campaign.yaml", "sweep" in name or "trials" in name
    path.write_text(_written(base, wrong))
    with pytest.raises(DistillError, match=f"(?s){says}"):
        _accepted(path, sweep=sweep)
    path.write_text(_written(base, wrong, right))
    _accepted(path, sweep=sweep)


@pytest.mark.parametrize("value", ["~/out", "$HOME/out", "${HOME}/out"])
def test_a_value_for_the_shell_is_passed_as_proposed(tmp_path: Path, value: str) -> None:
    """The option of the message, put behind a command in a shell, is accepted."""
    path = tmp_path / "campaign.yaml"
    path.write_text(_written(ROWS, {"output": value}))
    with pytest.raises(ConfigError, match="--set") as refused:
        load_campaign(str(path), [])
    proposed = re.search(r'--set (".*")', str(refused.value))
    assert proposed is not None
    option = subprocess.run(["bash", "-c", f"printf %s {proposed[1]}"], capture_output=True, text=True, check=True)
    assert load_campaign(str(path), [option.stdout]).output == str(Path.home() / "out")


#: A line of a campaign's file, what its message advises, and the line as advised.
LINES = {
    "campaign: c\ntask: a: b": ("put a text with a colon into quotes", "campaign: c\ntask: 'a:b'"),
    "campaign: {{ name }}": ("put a text in braces, .*, into quotes", "campaign: 'name'"),
    "campaign: !name": ("put a text that begins with ! into quotes", "campaign: 'name'"),
    "campaign: *name": ("put a text that begins with \\* into quotes", "campaign: 'name'"),
    "campaign: yes": ("put it into quotes", "campaign: 'yes'"),
    "campaign: c\nseed: 010": ("write a number without leading zeros", "campaign: c\nseed: 10"),
    "campaign: c\ncampaign: d": ("leave one out", "campaign: c"),
    "campaign: c\n---\nseed: 1": ("a file has one campaign, so leave --- out", "campaign: c\nseed: 1"),
    "campaign: c\nseed: '1'": ("write .* without quotes", "campaign: c\nseed: 1"),
}


@pytest.mark.parametrize("line", LINES)
def test_what_a_message_proposes_for_a_line_is_accepted(tmp_path: Path, line: str) -> None:
    """The file's own syntax: quotes, numbers, and names that stand twice."""
    says, right = LINES[line]
    rest = yaml.safe_dump({name: value for name, value in ROWS.items() if f"{name}:" not in line})
    path = tmp_path / "campaign.yaml"
    path.write_text(f"{line}\n{rest}")
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        load_campaign(str(path), [])
    path.write_text(f"{right}\n{rest}")
    load_campaign(str(path), [])
