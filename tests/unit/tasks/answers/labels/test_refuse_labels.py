"""Campaigns of multi-label tasks: what is refused before any work, and what the family offers."""

from typing import Any

import pytest

from ray_distill.config import Campaign, parse_config
from ray_distill.tasks.catalogue import TASKS

PLAIN: dict[str, Any] = {
    "campaign": "c",
    "task": "text_multi_label",
    "snapshot": {"source": "s"},
    "labels": {"teacher": {"model": "t"}},
    "student": {},
}


def config(section: str, **values: Any) -> Campaign:
    return parse_config(PLAIN | {section: {**PLAIN.get(section, {}), **values}})


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        (config("labels", signal={"estimator": "topk"}), "labels.signal.estimator is topk"),
        (config("labels", signal={"encoding": "compact"}), "labels.signal.encoding is compact"),
        (config("student", training={"packed": 512}), "student.training.packed: only language models"),
        (
            config("student", model={"from": "checkpoint", "model": "m", "lora": {}}),
            "student.model.lora: only language",
        ),
        (config("student", mixture={"how": "average", "others": [{"labels": "l"}]}), "student.mixture.how is average"),
        (config("sequences", method="greedy"), "sequences: a teacher of text_multi_label writes no texts"),
    ],
)
@pytest.mark.parametrize("task", ["text_multi_label", "image_multi_label"])
def test_a_setting_that_needs_one_distribution_or_texts_is_refused(task: str, wrong: Campaign, path: str) -> None:
    """One sentence that begins with the path of the setting, for either modality."""
    sentences = TASKS[task].refuse(wrong.model_copy(update={"task": task}))
    assert [sentence for sentence in sentences if sentence.startswith(path.replace("text_multi_label", task))]


@pytest.mark.parametrize("task", ["text_multi_label", "image_multi_label"])
def test_a_plain_campaign_is_accepted(task: str) -> None:
    """Mixtures by source too."""
    mixed = config("student", mixture={"how": "source", "others": [{"labels": "l"}]})
    for good in (parse_config(PLAIN), mixed):
        assert TASKS[task].refuse(good.model_copy(update={"task": task})) == []


def test_metrics_read_well_where_there_is_little_room() -> None:
    """The headline and its neighbours have short headings; the reference of a likeness has none of its own."""
    answers = TASKS["text_multi_label"].answers
    assert [metric.short for metric in answers.brief] == ["mAP", "Micro-F1", "ECE", "Agreement"]
    assert answers.metrics["map"].in_text == "mAP" and answers.metrics["subset_accuracy"].proportion
    assert answers.metrics["agreement"].of_teacher and answers.truth == "classes"
