"""The temperature that stands for auto: the smallest at which the teacher is unsure enough."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from ray_distill.config import LossConfig, SignalConfig, StudentConfig
from ray_distill.labels.model.distributions import Distributions
from ray_distill.students.objective.choose_temperature import chosen_temperature, softened_entropies, with_temperature

CLASSES, ROWS, TEMPERATURES = 10, 40, (1.0, 2.0, 4.0)


def distributions(scale: float, *, k: int = CLASSES, temperatures: tuple[float, ...] = TEMPERATURES) -> Distributions:
    """The k likeliest of ten classes of each row; a larger scale is a surer teacher."""
    logits = np.random.default_rng(0).normal(size=(ROWS, CLASSES)) * scale
    order = np.sort(np.argsort(-logits, axis=1)[:, :k], axis=1)
    tails = [1 - np.take_along_axis(softmax(logits / t, 1), order, 1).sum(1) for t in temperatures]
    with np.errstate(divide="ignore"):
        log_tail = np.log(np.maximum(np.stack(tails, 1), 0) if k < CLASSES else np.zeros((ROWS, len(temperatures))))
    return Distributions(
        classes=CLASSES,
        temperatures=temperatures,
        row_offsets=np.arange(ROWS + 1),
        position=np.zeros(ROWS, np.int32),
        entry_offsets=np.arange(ROWS + 1) * k,
        ids=order.ravel().astype(np.int32),
        logp=np.take_along_axis(log_softmax(logits, 1), order, 1).ravel(),
        log_tail=log_tail,
        entropy=np.zeros(ROWS),
    )


def chosen(*found: Distributions | None, confidence: Any = "softmax") -> float:
    """The temperature by units with these distributions."""
    units: list[Any] = [SimpleNamespace(distributions=one) for one in found]
    return chosen_temperature(lambda: iter(units), confidence=confidence)


def test_entropies_are_those_of_the_softened_softmax() -> None:
    """All classes, as scipy computes them."""
    logits = np.random.default_rng(0).normal(size=(ROWS, CLASSES)) * 3
    for column, temperature in enumerate(TEMPERATURES):
        expected = entropy(softmax(logits / temperature, 1), axis=1)
        np.testing.assert_allclose(softened_entropies(distributions(3), column), expected, rtol=1e-9)


def test_what_is_outside_is_one_class_more() -> None:
    """Of four classes of ten, the other six count as one."""
    logits = np.random.default_rng(0).normal(size=(ROWS, CLASSES)) * 3
    p = np.sort(softmax(logits / 2, 1), axis=1)[:, ::-1]
    merged = np.concatenate([p[:, :4], p[:, 4:].sum(1, keepdims=True)], 1)
    np.testing.assert_allclose(softened_entropies(distributions(3, k=4), 1), entropy(merged, axis=1), rtol=1e-6)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 1.0), (8.0, 2.0), (20.0, 4.0), (1000.0, 4.0)])
def test_a_surer_teacher_is_softened_more(scale: float, expected: float) -> None:
    """The smallest that suffices, and the greatest where none does; the order of units and rows does not count."""
    found = distributions(scale)
    assert chosen(found) == chosen(found, found) == expected
    assert chosen(distributions(scale, temperatures=(4.0, 1.0, 2.0))) == expected


def test_a_temperature_below_one_is_never_chosen() -> None:
    """It would hide what the teacher shows."""
    assert chosen(distributions(1.0, temperatures=(0.5, 1.0))) == 1.0


def test_one_is_chosen_where_there_is_nothing_to_choose_by() -> None:
    """Without labels or rows, with one temperature, and for families whose users choose the temperature."""
    assert chosen() == chosen(None) == chosen(distributions(20.0, temperatures=(1.0,))) == 1.0
    assert chosen(distributions(20.0), confidence=None) == 1.0


def test_only_auto_is_replaced() -> None:
    """The default losses have it; a given loss without a temperature is at 1."""
    default = StudentConfig().losses
    assert with_temperature(default, 4.0)["soft"].settings == {"temperature": 4.0}
    assert with_temperature(default, 4.0)["hard"] == default["hard"]
    given = {"soft": LossConfig(), "other": LossConfig.model_validate({"temperature": 2})}
    assert with_temperature(given, 4.0) == given


def test_temperatures_that_cost_nothing_are_declared() -> None:
    """Of dense labels alone, and not where others are given."""
    assert SignalConfig().temperatures == (1.0, 2.0, 4.0)
    assert SignalConfig(estimator="topk").temperatures == (1.0,)
    assert SignalConfig(temperatures=(3.0,)).temperatures == (1.0, 3.0)
    again = SignalConfig.model_validate(SignalConfig().model_dump(mode="json"))
    assert again == SignalConfig()
