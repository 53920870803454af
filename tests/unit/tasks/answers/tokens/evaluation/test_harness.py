"""Benchmarks of lm-evaluation-harness, from local files, on models that are loaded already."""

import importlib.util
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from ray_distill.config.judge import HarnessConfig
from ray_distill.errors import EvaluationError
from ray_distill.models.io.load import load_model
from ray_distill.tasks.answers.tokens import TOKENS
from ray_distill.tasks.answers.tokens.evaluation.harness import _read, run_harness
from ray_distill.testing.models import write_tiny_causal_model

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra lm-eval")

ROWS = [{"question": f"is {n} even?", "label": n % 2, "text": f"number {n} is a number " * (n + 1)} for n in range(6)]
SAME = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "metadata": {"version": 1.0},
}
TASKS = {
    "even": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": [" yes", " no"],
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "x",
        "generation_kwargs": {"until": ["q"], "max_gen_toks": 5, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, task in TASKS.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **SAME, **task}))
    return str(tmp_path / "tasks")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        arm: load_model(str(write_tiny_causal_model(root / arm, seed)), task="causal_lm")
        for seed, arm in enumerate(("teacher", "student"))
    }


def run(models, folder, tasks, **options):
    return run_harness(models, HarnessConfig(folder=folder, tasks=tasks, **options), seed=0, batch=4)


def log_likelihood(model, before, text):
    """Of a text after tokens, in float64: the sum of its tokens' log-probabilities."""
    ids = [*before, *model.processor.tokenizer(text)["input_ids"]]
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([ids])).logits[0].double().numpy()
    logp = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return sum(logp[place - 1, ids[place]] for place in range(len(before), len(ids)))


@needs_lm_eval
def test_choices_are_scored_by_their_likelihood(models, folder):
    """Accuracy is that of the likelier answer, computed by hand; every model has every figure."""
    found = run(models, folder, ["even"])
    assert list(found) == list(models)
    for arm, model in models.items():
        right = [
            np.argmax(
                [
                    log_likelihood(model, model.processor.tokenizer(row["question"])["input_ids"], answer)
                    for answer in (" yes", " no")
                ]
            )
            == row["label"]
            for row in ROWS
        ]
        estimate = found[arm]["lm_eval_even_acc"]
        assert estimate.value == pytest.approx(np.mean(right)) and estimate.n == len(ROWS)
        assert set(found[arm]) == {"lm_eval_even_acc", "lm_eval_even_acc_norm"}


@needs_lm_eval
def test_whole_texts_are_scored_window_by_window(models, folder):
    """Bits a byte of texts that fit, after the token that begins a text."""
    found = run(models, folder, ["texts"], limit=4)["student"]
    model = models["student"]
    begin = [model.processor.tokenizer.bos_token_id]
    total = sum(log_likelihood(model, begin, row["text"]) for row in ROWS[:4])
    size = sum(len(row["text"].encode()) for row in ROWS[:4])
    assert found["lm_eval_texts_bits_per_byte"].value == pytest.approx(-total / size / math.log(2), rel=1e-4)
    assert run(models, folder, ["texts"])["student"]["lm_eval_texts_word_perplexity"].value > 1  # longer than the limit


@needs_lm_eval
def test_what_is_written_is_greedy_and_cut(models, folder):
    """All tasks at once; nothing untrained writes an x; tasks that sample are refused."""
    found = run(models, folder, ["even", "write"])["teacher"]
    assert found["lm_eval_write_exact_match"].value == 0.0 and "lm_eval_even_acc" in found
    task = {**SAME, **TASKS["write"], "task": "luck", "generation_kwargs": {"until": ["q"], "do_sample": True}}
    with open(f"{folder}/luck.yaml", "w") as file:
        yaml.safe_dump(task, file)
    with pytest.raises(EvaluationError, match="a task that samples"):
        run(models, folder, ["luck"])


@needs_lm_eval
def test_what_cannot_be_run_is_said(models, folder):
    """An unknown task with those there are; data that is not there; a model without a tokenizer."""
    with pytest.raises(EvaluationError, match="has no task hellaswag; it has even, texts, write"):
        run(models, folder, ["hellaswag"])
    with open(f"{folder}/lost.yaml", "w") as file:
        yaml.safe_dump(
            {**SAME, **TASKS["even"], "task": "lost", "dataset_kwargs": {"data_files": {"test": "lost.jsonl"}}}, file
        )
    with pytest.raises(EvaluationError, match="cannot be run on .*lost.jsonl"):
        run(models, folder, ["lost"])
    with open(f"{folder}/long.yaml", "w") as file:
        yaml.safe_dump({**SAME, **TASKS["even"], "task": "long", "doc_to_choice": ["y" * 200, "n"]}, file)
    with pytest.raises(EvaluationError, match="an answer has 201 tokens, and .* reads 128"):
        run(models, folder, ["long"])
    with pytest.raises(EvaluationError, match="has no tokenizer"):
        run({"teacher": SimpleNamespace(processor=None, url="m:f")}, folder, ["even"])
    with pytest.raises(EvaluationError, match="there is no folder"):
        run(models, f"{folder}/nowhere", ["even"])


def test_the_package_is_optional(models, folder, monkeypatch):
    """Without it, the message says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match=r"pip install 'ray-distill\[lm-eval\]'"):
        run(models, folder, ["even"])


def test_results_become_estimates():
    """A standard error is a normal interval; filters are part of the name; what is no number is left out."""
    found = _read(
        {
            "results": {
                "sums": {
                    "alias": "sums",
                    "acc,none": 0.5,
                    "acc_stderr,none": 0.1,
                    "exact_match,strict": 0.25,
                    "exact_match_stderr,strict": "N/A",
                    "sample_len": 6,
                }
            },
            "n-samples": {"sums": {"effective": 6}},
        }
    )
    assert set(found) == {"lm_eval_sums_acc", "lm_eval_sums_exact_match_strict"}
    estimate = found["lm_eval_sums_acc"]
    assert (estimate.value, estimate.n) == (0.5, 6)
    assert (estimate.low, estimate.high) == pytest.approx((0.304, 0.696), abs=1e-3)
    assert math.isnan(found["lm_eval_sums_exact_match_strict"].low)


def test_benchmarks_have_a_direction():
    """The gate can ask for them: more is better but of perplexities and bits."""
    sides = {
        "lm_eval_even_acc": True,
        "lm_eval_write_exact_match": True,
        "lm_eval_look_at_home_acc": True,
        "lm_eval_texts_word_perplexity": False,
        "lm_eval_look_at_home_perplexity": False,
        "lm_eval_texts_bits_per_byte": False,
    }
    assert {name: TOKENS.find(name).higher_is_better for name in sides} == sides
