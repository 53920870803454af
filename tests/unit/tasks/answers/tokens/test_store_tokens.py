"""Language models' answers as they are compared for drift: the commonest tokens, and all others as one."""

import numpy as np
import pytest

from ray_distill.labels.model.distributions import Distributions
from ray_distill.tasks.answers.tokens import store
from ray_distill.tasks.answers.tokens.store import commonest_tokens, token_probabilities


def answers(rows: list[list[dict[int, float]]], classes: int = 9) -> Distributions:
    """By document and position, the stored tokens with their probabilities; what is missing to 1 is the tail."""
    positions = [position for row in rows for position in row]
    stored = [sorted(position.items()) for position in positions]
    with np.errstate(divide="ignore"):
        tail = np.log(np.maximum(1 - np.array([sum(position.values()) for position in positions]), 0))
    return Distributions(
        classes=classes,
        temperatures=(1.0,),
        position=np.arange(len(positions), dtype=np.int32),
        row_offsets=np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64),
        entry_offsets=np.cumsum([0, *(len(entries) for entries in stored)]).astype(np.int64),
        ids=np.array([token for entries in stored for token, _ in entries], np.int32),
        logp=np.log([p for entries in stored for _, p in entries]).astype(np.float32),
        log_tail=tail[:, None].astype(np.float32),
        entropy=np.zeros(len(positions), np.float32),
    )


def test_the_commonest_tokens_are_those_of_most_mass(monkeypatch: pytest.MonkeyPatch) -> None:
    """By mass, not by how often they are stored; ascending; of equal ones the first; no more than there are."""
    monkeypatch.setattr(store, "TOKENS", 3)
    found = answers([[{5: 0.9, 1: 0.1}], [{1: 0.1, 7: 0.5}, {1: 0.1, 2: 0.5}]])
    assert commonest_tokens(found).tolist() == [2, 5, 7]
    monkeypatch.setattr(store, "TOKENS", 20)
    assert commonest_tokens(found).tolist() == list(range(9))


def test_a_documents_answer_is_its_mean_over_positions() -> None:
    """Long and short documents weigh alike; what is not stored, or not among the tokens, is one bucket at the end."""
    found = answers([[{0: 0.6, 3: 0.4}], [{0: 0.2, 3: 0.2}, {3: 0.8, 4: 0.2}, {8: 1.0}]])
    rows = token_probabilities(found, np.array([0, 3]))
    np.testing.assert_allclose(rows, [[0.6, 0.4, 0.0], [0.2 / 3, 1.0 / 3, 1.8 / 3]], atol=1e-7)


def test_a_document_without_positions_is_all_in_the_last_bucket() -> None:
    """Its mean is of nothing; probabilities still sum to 1."""
    rows = token_probabilities(answers([[], [{2: 1.0}]]), np.array([2]))
    np.testing.assert_allclose(rows, [[0, 1], [1, 0]], atol=1e-7)


def test_no_bucket_is_below_nothing() -> None:
    """Float32 probabilities of all tokens sum to a little more than 1; the others then have nothing, not less."""
    generator = np.random.default_rng(0)
    wide = [dict(enumerate(generator.dirichlet(np.ones(9)))) for _ in range(200)]
    rows = token_probabilities(answers([[position] for position in wide]), np.arange(9))
    assert (rows >= 0).all() and (rows[:, 9] == 0).any()
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-6)


def test_both_sides_are_told_by_the_same_tokens() -> None:
    """Tokens that the reference has not are among the others, however common they are now."""
    before, now = answers([[{1: 1.0}], [{2: 1.0}]]), answers([[{6: 0.7, 1: 0.3}]])
    tokens = np.array([1, 2])
    assert token_probabilities(before, tokens).tolist() == [[1, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(token_probabilities(now, tokens), [[0.3, 0, 0.7]], atol=1e-7)
