"""Names of metrics, arms and corruptions are refused before anything is spent, with the nearest known ones."""

import re
from typing import Any

import pytest

from ray_distill.config import Campaign, parse_config
from ray_distill.promotion.rules import wrong_limits
from ray_distill.tasks.answers.tokens import POSITION_BUCKETS
from ray_distill.tasks.answers.tokens.evaluation.measures import BUCKETS
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.known_names import unknown_names
from ray_distill.text import near_names


def _config(task: str = "text_classification", **sections: Any) -> Campaign:
    labels = {"teacher": {"model": "m:f"}} | sections.pop("labels", {})
    return parse_config({"campaign": "c", "task": task, "snapshot": {"source": "r"}, "labels": labels, **sections})


def _wrong(config: Campaign) -> list[str]:
    return unknown_names(config, get_task(config.task)) + wrong_limits(config.gate, config.task)


@pytest.mark.parametrize(
    ("task", "sections", "says"),
    [
        ("text_classification", {"gate": {"limits": {"acuracy": {"min": 0.5}}}}, "did you mean accuracy?"),
        ("text_classification", {"gate": {"limits": {"f1": {"min": 0.5}}}}, "did you mean macro_f1?"),
        ("causal_lm", {"gate": {"limits": {"nll_at_0_15": {"max": 3}}}}, "has no such metric"),
        ("causal_lm", {"gate": {"limits": {"kl_from_teacher_at_0_16": {"max": 3}}}}, "kl_from_teacher_at_0_15"),
        ("text_multi_label", {"gate": {"limits": {"accuracy": {"min": 0.5}}}}, "subset_accuracy"),
        ("text_classification", {"gate": {"beat": ["baseline_hard_label"]}}, "did you mean baseline_hard_labels"),
        ("text_classification", {"gate": {"beat": ["student"]}}, "there is no arm 'student'"),
        ("text_classification", {"gate": {"beat": ["ceiling_true_labels"]}}, "where student.ceiling names"),
        ("text_classification", {"labels": {"check": {"limits": {"acc": {"min": 0.5}}}}}, "did you mean accuracy?"),
        (
            "text_classification",
            {"labels": {"check": {"limits": {"agreement": {"min": 0.5}}}}},
            "labels.check.limits.agreement: it is measured against the teacher",
        ),
        ("text_classification", {"evaluation": {"corruptions": ["typo"]}}, "did you mean typos?"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_the_nearest(task: str, sections: dict[str, Any], says: str) -> None:
    """Without this, the verdict finds it missing when teacher and training are paid for."""
    (line,) = _wrong(_config(task, **sections))
    assert says in line


@pytest.mark.parametrize(
    ("task", "sections"),
    [
        ("causal_lm", {"gate": {"limits": {"kl_from_teacher_at_1024_up": {"max": 3}}, "beat": ["teacher"]}}),
        ("causal_lm", {"gate": {"limits": {"lm_eval_arc_acc": {"min": 0.3}, "tokens_per_second": {"min": 1}}}}),
        ("text_classification", {"student": {"ceiling": "rows"}, "gate": {"beat": ["ceiling_true_labels"]}}),
        ("text_classification", {"gate": {"limits": {"latency_ms_p95": {"max": 5}}, "beat": ["champion"]}}),
    ],
)
def test_names_of_the_tables_are_accepted(task: str, sections: dict[str, Any]) -> None:
    """Buckets, benchmarks, figures of speed, and arms that a setting adds."""
    assert _wrong(_config(task, **sections)) == []


@pytest.mark.parametrize(
    ("metric", "evaluation", "says"),
    [
        ("lm_eval_arc_acc", {}, "gate.limits.lm_eval_arc_acc: it is measured only with evaluation.lm_eval"),
        ("rouge1", {}, "only with evaluation.overlap: true"),
        ("exact_match", {"written": 0}, "only with evaluation.written above 0"),
        ("exact_match", {}, None),
        ("rouge1", {"overlap": True}, None),
    ],
)
def test_a_limit_on_what_the_settings_never_measure_names_the_setting(
    metric: str, evaluation: dict[str, Any], says: str | None
) -> None:
    """The metric exists; this campaign's report would not have it."""
    config = _config("seq2seq", gate={"limits": {metric: {"min": 0.1}}}, evaluation=evaluation)
    wrong = [line for line in get_task("seq2seq").refuse(config) if metric in line]
    assert wrong == [] if says is None else says in wrong[0]


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"gate": {"limits": {"accuracy": {"min": 85}}}}, "accuracy.min is 85, .*between 0 and 1: write 0.85 for 85 %"),
        ({"gate": {"limits": {"accuracy": {"relative": 97}}}}, "relative is 97 times the teacher's.*write 0.97"),
        ({"gate": {"limits": {"accuracy": {"margin": 1}}}}, "accuracy.margin is 1, which allows any accuracy"),
        ({"gate": {"limits": {"ece": {"max": 15}}}}, "gate.limits.ece.max is 15, .*write 0.15 for 15 %"),
        ({"gate": {"limits": {"latency_ms_p95": {"max": -1}}}}, "latency_ms_p95 is at least 0"),
        ({"gate": {"limits": {"accuracy": {"min": 0.9, "max": 0.5}}}}, "min is 0.9, above its max 0.5"),
        ({"labels": {"check": {"limits": {"accuracy": {"min": 90}}}}}, "labels.check.limits.accuracy.min is 90"),
    ],
)
def test_a_limit_that_every_or_no_value_meets_is_refused(sections: dict[str, Any], says: str) -> None:
    """A percentage for a share rejects every student, or lets every student pass, when all is paid for."""
    (line,) = _wrong(_config("text_classification", **sections))
    assert re.search(says, line), line


def test_limits_at_the_ends_of_a_metric_are_accepted() -> None:
    """They are a usual way to have no limit; a student may have to be better than its teacher."""
    limits = {"agreement": {"min": 0}, "ece": {"max": 1}, "accuracy": {"relative": 1.1}, "parameters": {"max": 1e9}}
    assert _wrong(_config("text_classification", gate={"limits": limits})) == []


def test_buckets_of_the_table_are_those_that_are_measured() -> None:
    """One list of positions serves the gate's names and the measures."""
    assert tuple(BUCKETS) == POSITION_BUCKETS


def test_near_names_share_letters_or_words() -> None:
    """The most similar come first; a name unlike all others has none."""
    assert near_names("F1", ["macro_f1", "micro_f1", "ece"]) == ["macro_f1", "micro_f1"]
    assert near_names("temprature", ["weight", "temperature"]) == ["temperature"]
    assert near_names("zzz", ["weight", ""]) == []
