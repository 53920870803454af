"""The section `sequences`: what cannot be meant is refused by name."""

from typing import Any

import pytest

from ray_distill.config import Campaign, SequencesConfig, parse_config
from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ConfigError
from ray_distill.tasks.catalogue import get_task


def _campaign(task: str = "causal_lm", **sequences: Any) -> Campaign:
    return parse_config(
        {
            "campaign": "c",
            "task": task,
            "snapshot": {"source": "s"},
            "labels": {"teacher": {"model": "t"}},
            "sequences": sequences,
        }
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": 0.7}, "temperature goes with method: sample, not greedy"),
        ({"method": "beam", "beams": 4, "top_p": 0.9}, "top_p goes with method: sample, not beam"),
        ({"method": "sample", "beams": 4}, "beams goes with method: beam, not sample"),
        ({"candidates": 2}, "greedy writes one sequence a prompt, candidates is 2: take sample or beam"),
        ({"method": "beam"}, "beam needs at least 2 beams for 1 candidates, beams is 1"),
        ({"method": "beam", "beams": 3, "candidates": 4}, "beam needs at least 4 beams"),
        ({"filters": {"min_score": 0.5}}, "sequences.filters: min_score needs a scorer"),
        ({"filters": {"min_tokens": 9, "max_tokens": 8}}, "min_tokens 9 is more than max_tokens 8"),
        ({"filters": {"min_tokens": 300}}, "min_tokens 300 is more than new_tokens 256"),
        ({"filters": {"scorer": "no function"}}, "sequences.filters.scorer"),
        ({"filters": {"min_log_probability": 0.1}}, "sequences.filters.min_log_probability"),
        ({"method": "sample", "top_p": 0}, "sequences.top_p"),
        ({"splits": []}, "sequences.splits"),
        ({"splits": ["train", "train"]}, "a split is named twice"),
        ({"typo": 1}, "sequences.typo: unknown field"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(settings: dict[str, Any], says: str) -> None:
    """One wrong field, and what is allowed."""
    with pytest.raises(ConfigError, match="1 wrong field") as told:
        _campaign(**settings)
    assert says in str(told.value)


def test_a_task_without_texts_to_write_is_refused() -> None:
    """A classifier writes nothing."""
    campaign = _campaign(task="text_classification")
    wrong = get_task(campaign.task).refuse(campaign)
    assert wrong == ["sequences: a teacher of text_classification writes no texts: leave the section out"]


@pytest.mark.parametrize(
    ("task", "language", "form"),
    [("causal_lm", {}, "text"), ("causal_lm", {"format": "chat"}, "chat"), ("seq2seq", {}, "pair")],
)
def test_the_form_of_a_row_follows_from_the_task(task: str, language: dict[str, Any], form: str) -> None:
    """A text, a conversation, or a source with its target; all three can be written."""
    campaign = _campaign(task=task)
    teacher = campaign.labels.teacher.model_copy(update={"language": LanguageConfig(**language)})
    changed = campaign.model_copy(update={"labels": campaign.labels.model_copy(update={"teacher": teacher})})
    assert changed.sequences is not None and get_task(task).inputs.form(changed) == form


def test_left_out_the_teacher_writes_nothing() -> None:
    """None, and a campaign that came through its own JSON is the same."""
    campaign = _campaign(method="sample", candidates=4, filters={"scorer": "pkg.mod:f"}, failures={"attempts": 2})
    assert campaign.sequences is not None and campaign.sequences.failures.batch_seconds == 3600
    assert parse_config(campaign.model_dump(mode="json", by_alias=True)) == campaign
    plain = parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "snapshot": {"source": "s"},
            "labels": {"teacher": {"model": "t"}},
        }
    )
    assert plain.sequences is None


def test_a_batch_counts_sequences() -> None:
    """Candidates and beams of a prompt are written together; a batch holds at least one prompt."""
    assert SequencesConfig(batch=16).prompts_a_batch == 16
    assert SequencesConfig(method="sample", candidates=5, batch=16).prompts_a_batch == 3
    assert SequencesConfig(method="beam", beams=4, candidates=2, batch=2).prompts_a_batch == 1
