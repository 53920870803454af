"""The metric tables: every number that a report may hold is found, under one name, with its better side."""

import math

import pytest

from ray_distill.errors import ConfigError
from ray_distill.tasks.catalogue import TASKS, get_task
from ray_distill.tasks.metrics import Metric, MetricTable


def test_an_unknown_task_is_refused_with_the_known_names():
    """Whatever reads a table of metrics by a task's name."""
    with pytest.raises(ConfigError, match=r"no task 'poems': use text_classification or"):
        get_task("poems")


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_family_names_its_own_metrics(task):
    """Headline, brief and robust metrics and default limits are in the table, and no name occurs twice."""
    family = TASKS[task].answers
    used = {family.headline, *family.beside, *family.robust, *family.limits}
    assert used <= set(family.metrics.names)
    assert len(set(family.names)) == len(family.names)
    assert family.brief[0].name == family.headline
    assert family.metrics[family.headline].higher_is_better is not None


def test_a_metric_at_a_bucket_is_the_metric():
    """Buckets have no rows of their own in the table."""
    table = get_task("causal_lm").answers.metrics
    assert table.find("kl_from_teacher_at_0_15") is table["kl_from_teacher"]
    assert table.find("charm") is None


def test_a_pattern_matches_names_that_come_from_elsewhere():
    """The first pattern that matches decides, also of names that contain what marks a bucket."""
    answers = get_task("causal_lm").answers
    assert answers.find("lm_eval_look_at_home_acc").higher_is_better is True
    assert answers.find("lm_eval_look_at_home_perplexity").higher_is_better is False


def test_a_metric_shows_itself():
    """Scale, decimals, sign, and the heading within a sentence; a gap has no better side."""
    size = Metric(name="bytes", heading="On disk, MB", decimals=2, scale=1e-6, better="less")
    gap = Metric(name="gap", heading="Entropy gap, nats", better="zero", low=-math.inf)
    assert size.show(1_234_567_890) == "1,234.57" and gap.show(0.25, sign=True) == "+0.250"
    assert gap.higher_is_better is None and size.higher_is_better is False
    assert [metric.in_text for metric in (size, gap)] == ["on disk", "entropy gap"]
    assert get_task("causal_lm").answers.metrics["nll"].in_text == "NLL"
    with pytest.raises(KeyError):
        MetricTable(metrics=(size,))["gap"]
