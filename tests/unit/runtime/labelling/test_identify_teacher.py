"""What is decided about a teacher before anything is labelled, and what a campaign's store must be; pure."""

import itertools
import math
from dataclasses import replace

import pytest

from ray_distill.artifacts import Estimate
from ray_distill.config import CheckConfig, parse_config
from ray_distill.errors import ConfigError, TeacherRefused
from ray_distill.labels.model.manifest import TeacherIdentity
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.models.core.row_classes import named
from ray_distill.runtime.labelling.identify_teacher import TeacherFacts, make_manifest
from ray_distill.runtime.labelling.teacher_quality import TeacherCheck, refuse_weak_teacher


def _check(accuracy: float | None, ece: float | None = 0.05, majority: float = 0.5) -> TeacherCheck:
    measured = {"accuracy": accuracy, "ece": ece}
    teacher = {name: Estimate(value=value, n=1000) for name, value in measured.items() if value is not None}
    return TeacherCheck(teacher=teacher, trivial={} if math.isnan(majority) else {"accuracy": majority})


def _floor(accuracy: float | None = None, ece: float | None = None) -> CheckConfig:
    given = {"accuracy": None if accuracy is None else {"min": accuracy}, "ece": None if ece is None else {"max": ece}}
    return CheckConfig.model_validate({"limits": {name: limit for name, limit in given.items() if limit}})


@pytest.mark.parametrize(("accurate", "calibrated", "better"), list(itertools.product([True, False], repeat=3)))
def test_a_teacher_passes_only_if_it_clears_every_floor(accurate: bool, calibrated: bool, better: bool) -> None:
    """All three floors hold, or the teacher is refused and exactly the missed ones are named, with their distance."""
    check = _check(0.9 if accurate else 0.7, 0.05 if calibrated else 0.25, 0.5 if better else 0.95)
    floor = _floor(0.8, 0.1)
    if accurate and calibrated and better:
        refuse_weak_teacher(check, floor, "big")
        return
    with pytest.raises(TeacherRefused) as refused:
        refuse_weak_teacher(check, floor, "big")
    told = str(refused.value)
    assert "the teacher big is below its floor" in told
    assert ("accuracy 0.7000 is 0.1000 below the least accuracy of 0.8" in told) is not accurate
    assert ("ece 0.2500 is 0.1500 above the greatest ece of 0.1" in told) is not calibrated
    assert ("commonest answer" in told) is not better
    assert "Nothing was labelled" in told


def test_a_floor_is_met_by_equality_but_the_majority_must_be_exceeded() -> None:
    """Accuracy and calibration exactly at their floors pass; accuracy exactly that of the majority does not."""
    refuse_weak_teacher(_check(0.8, 0.1), _floor(0.8, 0.1), "big")
    with pytest.raises(TeacherRefused, match="does not exceed the 0.8000"):
        refuse_weak_teacher(_check(0.8, majority=0.8), CheckConfig(), "big")
    refuse_weak_teacher(_check(0.8, majority=0.8), CheckConfig(beat_majority=False), "big")


@pytest.mark.parametrize("floor", [_floor(0.0), _floor(None, 1.0)])
def test_a_floor_that_cannot_be_checked_refuses(floor: CheckConfig) -> None:
    """Without one labelled row in the calibration split, a configured floor is not taken as met."""
    with pytest.raises(TeacherRefused, match="was not measured"):
        refuse_weak_teacher(_check(None, None), floor, "big")


def test_without_labels_and_without_a_floor_the_teacher_is_taken() -> None:
    """Unlabelled traffic and no floor: there is nothing to measure against."""
    refuse_weak_teacher(_check(None, None, math.nan), CheckConfig(), "big")


def test_a_measurement_that_is_not_a_number_refuses() -> None:
    """NaN is never above a floor."""
    with pytest.raises(TeacherRefused):
        refuse_weak_teacher(_check(math.nan), _floor(0.1), "big")
    with pytest.raises(TeacherRefused):
        refuse_weak_teacher(_check(0.9, math.nan), _floor(None, 0.9), "big")
    with pytest.raises(TeacherRefused):
        refuse_weak_teacher(_check(math.nan), CheckConfig(), "big")


def test_an_unknown_majority_refuses_nobody() -> None:
    """Where the train split has no labels there is no majority class to beat."""
    refuse_weak_teacher(_check(0.1, majority=math.nan), CheckConfig(), "big")


FACTS = TeacherFacts(fingerprint="f", space=named(("a", "b", "c")), layers=(0, 2), head_url=None, describe={})


def _config(task: str = "text_classification", **labels: object):
    return parse_config(
        {
            "campaign": "c",
            "task": task,
            "snapshot": {"source": "x"},
            "labels": {"teacher": {"model": "big", "revision": "sha256:1", "dtype": "bfloat16"}, **labels},
        }
    )


def test_the_manifest_says_what_the_teacher_and_the_config_decide() -> None:
    """Classes and layers are the teacher's, the signal is the config's, and T = 1 is always declared."""
    manifest = make_manifest(
        _config(
            signal={"temperatures": [2]},
            hidden={"layers": [0, -1], "pool": "cls", "dtype": "float32"},
            unit_rows=7,
            resources={"batch": 5, "cpus": 3},
        ),
        FACTS,
    )
    assert (manifest.space.names, tuple(manifest.hidden)) == (("a", "b", "c"), (0, 2))
    assert manifest.teacher == TeacherIdentity(fingerprint="f", model="big", revision="sha256:1", dtype="bfloat16")
    spec = manifest.distributions
    assert (spec.family, spec.estimator, spec.codec, spec.k) == ("categorical", "dense", ("dense", 2), 0)
    assert spec.temperatures == (1.0, 2.0)
    assert {(states.pool, states.dtype) for states in manifest.hidden.values()} == {("cls", "float32")}
    assert (manifest.unit_rows, manifest.batch, manifest.threads) == (7, 5, 3)


def test_a_topk_manifest_stores_no_more_classes_than_there_are() -> None:
    """k is capped by the number of classes."""
    assert make_manifest(_config(signal={"estimator": "topk", "k": 2}), FACTS).distributions.k == 2
    spec = make_manifest(_config(signal={"estimator": "topk", "k": 64}), FACTS).distributions
    assert (spec.k, spec.codec) == (3, ("topk", 2))


def test_a_language_models_manifest_has_a_vocabulary_and_names_its_tokens() -> None:
    """No classes; another tokenizer is another store; a k beyond the vocabulary is an error, not another k."""
    facts = replace(FACTS, space=AnswerSpace(size=49152), tokens="t")
    manifest = make_manifest(_config("causal_lm", signal={"estimator": "topk", "k": 64}), facts)
    assert (manifest.space, manifest.distributions.k) == (AnswerSpace(size=49152), 64)
    assert manifest.teacher.tokens == "t"
    other = make_manifest(_config("causal_lm", signal={"estimator": "topk", "k": 64}), replace(facts, tokens="u"))
    assert other.fingerprint != manifest.fingerprint
    assert (
        make_manifest(
            _config("causal_lm", signal={"estimator": "topk", "k": 64}), replace(facts, space=AnswerSpace(size=64))
        ).distributions.k
        == 64
    )
    for estimator in ("topk", "hybrid"):
        with pytest.raises(ConfigError, match=r"labels\.signal\.k is 64, but big has a vocabulary of 63: give at most"):
            make_manifest(
                _config("causal_lm", signal={"estimator": estimator, "k": 64}),
                replace(facts, space=AnswerSpace(size=63)),
            )
    assert (
        make_manifest(
            _config("causal_lm", signal={"estimator": "dense", "k": 64}), replace(facts, space=AnswerSpace(size=63))
        ).distributions.k
        == 0
    )


def test_what_decides_the_bytes_decides_the_manifest_and_what_does_not_does_not() -> None:
    """Batch, threads and dtype change the fingerprint; the number of actors and the floor do not."""
    plain = make_manifest(_config(), FACTS).fingerprint
    assert make_manifest(_config(resources={"batch": 5}), FACTS).fingerprint != plain
    assert make_manifest(_config(resources={"cpus": 2}), FACTS).fingerprint != plain
    assert make_manifest(_config(resources={"actors": [2, 9]}), FACTS).fingerprint == plain
    assert make_manifest(_config(check={"limits": {"accuracy": {"min": 0.9}}}), FACTS).fingerprint == plain
