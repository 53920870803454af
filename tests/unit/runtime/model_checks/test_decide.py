"""What a campaign leaves open follows from its task, its engine and its other settings."""

from collections.abc import Mapping
from typing import Any

import pytest

from ray_distill.config import Campaign, parse_config
from ray_distill.runtime.model_checks.decide import decided


def config_of(task: str, signal: Mapping[str, Any] | None, **teacher: Any) -> Campaign:
    labels: dict[str, Any] = {"teacher": {"model": "/teacher", **teacher}}
    if signal is not None:
        labels["signal"] = signal
    return parse_config({"campaign": "open", "task": task, "snapshot": {"source": "/traffic.jsonl"}, "labels": labels})


@pytest.mark.parametrize(
    ("signal", "teacher", "expected"),
    [
        (None, {}, ("sampled", "compact", (1.0,))),
        ({"draws": 12}, {}, ("sampled", "compact", (1.0,))),
        ({"encoding": "lossless"}, {}, ("sampled", "lossless", (1.0,))),
        ({"k": 16}, {}, ("topk", "compact", (1.0,))),
        ({"temperatures": [1, 2]}, {}, ("topk", "compact", (1.0, 2.0))),
        (None, {"engine": "vllm"}, ("topk", "compact", (1.0,))),
        ({"estimator": "dense"}, {}, ("dense", "lossless", (1.0, 2.0, 4.0))),
        ({"estimator": "hybrid", "k": 4}, {}, ("hybrid", "lossless", (1.0,))),
    ],
)
def test_a_language_model_stores_draws_unless_a_setting_asks_for_more(
    signal: Mapping[str, Any] | None, teacher: Mapping[str, Any], expected: tuple[object, ...]
) -> None:
    found = decided(config_of("causal_lm", signal, **teacher)).labels.signal
    assert (found.estimator, found.encoding, found.temperatures) == expected
    assert found.draws == (signal or {}).get("draws", 50)


@pytest.mark.parametrize("task", ["text_classification", "image_classification", "text_multi_label"])
def test_classes_are_stored_whole_at_three_temperatures(task: str) -> None:
    found = decided(config_of(task, None)).labels.signal
    assert (found.estimator, found.encoding, found.temperatures) == ("dense", "lossless", (1.0, 2.0, 4.0))


def test_what_was_decided_once_stays() -> None:
    once = decided(config_of("causal_lm", None))
    assert decided(once) == once
    assert decided(parse_config(once.model_dump(mode="json", by_alias=True))) == once
