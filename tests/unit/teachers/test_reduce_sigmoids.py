"""Sigmoids of all classes are stored as log odds, whatever the dtype of the logits."""

import numpy as np
import pytest
import torch

from ray_distill.config import LabelsConfig, TeacherConfig
from ray_distill.errors import TeacherRefused
from ray_distill.labels.model.distributions import bernoulli
from ray_distill.teachers import engines
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.engines import ENGINES
from ray_distill.teachers.reduce import Places
from ray_distill.teachers.reduce_sigmoids import reduce_sigmoids

LOGITS = torch.tensor([[0.0, 2.0, -30.0], [float("inf"), -1.0, float("nan")]])


def _request(estimator: str = "dense") -> LabelRequest:
    return LabelRequest(estimator=estimator, k=2, temperatures=(1.0, 2.0))


def test_a_row_has_the_log_odds_of_every_class() -> None:
    """One position a row, all classes, nothing in the tail; certainty is kept, and NaN is for quarantine."""
    found = reduce_sigmoids(LOGITS, _request())
    assert found.family == "bernoulli" and found.classes == 3 and found.rows == 2
    np.testing.assert_array_equal(found.log_odds, LOGITS.reshape(-1).numpy())
    np.testing.assert_allclose(found.logp[:3], np.log(torch.sigmoid(LOGITS[0].double()).numpy()), rtol=1e-6)
    assert (found.log_tail == -np.inf).all() and found.log_tail.shape == (2, 2)
    assert [rows.tolist() for rows, _ in found.invalid_rows()] == [[1], []]


def test_logits_of_half_precision_become_float32() -> None:
    """The stored odds are those of the logits as they are."""
    half = LOGITS[:1].to(torch.bfloat16)
    assert reduce_sigmoids(half, _request()).log_odds.tolist() == half.float()[0].tolist()


def test_places_select_the_logits_of_positions() -> None:
    """Two positions in one row, in another order than the logits."""
    places = Places(
        row_offsets=np.array([0, 0, 2]), position=np.array([1, 4], np.int32), logits=np.array([1, 0], np.int64)
    )
    found = reduce_sigmoids(LOGITS[:, :2], _request(), places=places)
    expected = bernoulli(LOGITS[[1, 0], :2].numpy(), row_offsets=places.row_offsets, position=places.position)
    assert found.log_odds.tolist() == expected.log_odds.tolist() and found.position.tolist() == [1, 4]


@pytest.mark.parametrize("estimator", ["topk", "sampled", "hybrid"])
def test_estimators_of_one_distribution_are_refused(estimator: str) -> None:
    """Classes that are a yes or no each have no likeliest ones."""
    with pytest.raises(TeacherRefused, match="use dense"):
        reduce_sigmoids(LOGITS, _request(estimator))


def test_settings_that_sigmoids_cannot_have_are_refused_before_any_cost() -> None:
    """By kind of distribution: estimator and encoding, and an engine that has none of the kind."""

    def refuse(**settings: object) -> None:
        teacher = TeacherConfig(model="any", engine=str(settings.pop("engine", "transformers")))
        labels = LabelsConfig.model_validate({"teacher": teacher.model_dump(), "signal": settings})
        engines.refuse_kind(labels, "bernoulli")

    refuse(estimator="dense")
    with pytest.raises(TeacherRefused, match=r"labels.signal.estimator is topk.* gives dense"):
        refuse(estimator="topk")
    with pytest.raises(TeacherRefused, match=r"labels.signal.encoding is compact.*set it to lossless"):
        refuse(estimator="dense", encoding="compact")
    with pytest.raises(TeacherRefused, match="vllm gives nothing"):
        refuse(engine="vllm", estimator="topk")
    assert ENGINES["transformers"].estimators["categorical"] == ("dense", "topk", "sampled", "hybrid")
