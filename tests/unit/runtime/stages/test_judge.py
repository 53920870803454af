"""Judging of every family in this process: the numbers of a tiny campaign are those of the golden file."""

import json
from pathlib import Path

import pytest

from tests.labs.judging import golden, judge_tiny

GOLDEN = json.loads(Path(__file__).with_name("judged.golden.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("task", ["text_classification", "text_multi_label", "causal_lm", "seq2seq"])
def test_the_numbers_are_those_of_the_golden_file(task: str, tmp_path: Path) -> None:
    """Metrics, slices, robustness, paired differences and the teacher's check, but for rounding of another machine.

    Logits are float32: in a difference of two NLLs that are almost equal their rounding is all that is left.
    """
    found = golden(judge_tiny(task, tmp_path))
    assert list(found) == list(GOLDEN[task])
    for name, values in GOLDEN[task].items():
        least = 2e-6 if name.startswith("difference.nll") else 1e-7
        assert found[name] == pytest.approx(values, rel=1e-5, abs=least, nan_ok=True), name
