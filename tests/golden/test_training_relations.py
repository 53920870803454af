"""Losses of groups of rows, and gradient norms, in real training: neither ranks nor micro-batches matter.

52 rows in global batches of 12 and groups of 4; the teacher may not teach seven rows, so some groups are short.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from ray_distill.errors import ConfigError
from ray_distill.testing.gloo import run_gloo
from tests.labs import language_training as language
from tests.labs import training as lab
from tests.labs.training import Lab, assert_same_curve

LOSSES = {
    "soft": {"weight": 0.7, "temperature": {"step": [[0, 2], [0.5, 1]]}, "divergence": "adaptive_kl"},
    "hard": {"weight": {"step": [[0, 0.3], [0.5, 0.1]]}},
    "hidden": {"weight": 0.2, "kind": "pca"},
    "cka": {"weight": 0.5, "group": 4},
    "rkd_distance": {"weight": 0.5, "group": 4, "layers": "last"},
    "rkd_angle": {"weight": 0.5, "group": 4, "layers": {1: 3, 2: 3}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Every loss but those of tokens, with gradient norms every third step."""
    folder = tmp_path_factory.mktemp("lab")
    lab.write_model(folder)
    return Lab(folder=str(folder), losses=LOSSES, training={"micro_batch": 4, "gradient_norms_every": 3})


@pytest.fixture(scope="module")
def reference(run: Lab) -> lab.Ran:
    """One process, a global batch in one pass."""
    return lab.run(replace(run, training={**run.training, "micro_batch": 12}))


def test_micro_batches_of_whole_groups_do_not_matter(run: Lab, reference: lab.Ran) -> None:
    """The curve and the norms of one group a pass are those of three."""
    assert_same_curve(lab.run(run), reference)


def test_norms_come_every_third_step_and_change_nothing(run: Lab, reference: lab.Ran) -> None:
    """One of each loss; a run without them has the same losses, to the bit."""
    names = {f"gradient_norm_{name}" for name in LOSSES}
    for step, values in reference.curve.items():
        assert {name for name in values if name.startswith("gradient_norm")} == (names if step % 3 == 0 else set())
        assert all(values[name] > 0 for name in names & set(values))
    without = lab.run(replace(run, training={"micro_batch": 12}))
    assert [values["loss"] for values in without.curve.values()] == [
        values["loss"] for values in reference.curve.values()
    ]


def test_a_micro_batch_that_splits_a_group_is_refused(run: Lab) -> None:
    """Not trained otherwise without a word."""
    with pytest.raises(ConfigError, match="micro_batch is 6, and a loss compares groups of 4 rows.*set it to 4 or 8"):
        lab.run(replace(run, training={"micro_batch": 6}))


@pytest.mark.golden
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_do_not_matter(run: Lab, reference: lab.Ran, world: int) -> None:
    """Three groups on two ranks, one of which is filled up; on both engines."""
    labs = [
        replace(run, training={**run.training, **engine})
        for engine in ({"engine": "torch"}, {"engine": "deepspeed", "zero_stage": 3, "micro_batch": 8})
    ]
    for ranks in zip(*run_gloo(lab.run_all, world, labs), strict=True):
        for ran in ranks:
            assert_same_curve(ran, reference)


def test_language_models_have_groups_of_documents_and_relations_of_their_tokens(tmp_path: Path) -> None:
    """Of 30 documents in batches of 12, padded or packed, in passes of four or all: the same curve, norms too."""
    losses = {"soft": {}, "relation": {"weight": 0.5, "heads": 4}, "cka": {"group": 4}, "rkd_distance": {"group": 4}}
    folder = language.write_models(tmp_path)
    curves = [
        language.run(
            language.Lab(folder=folder, losses=losses, steps=4, training={"gradient_norms_every": 2, **training})
        ).curve
        for training in ({"micro_batch": 12}, {"micro_batch": 4}, {"micro_batch": 4, "packed": 64})
    ]
    for curve in curves[1:]:
        for step, values in curves[0].items():
            for name in lab.learnt(values):
                assert curve[step][name] == pytest.approx(values[name], rel=1e-4, abs=1e-6), (step, name)
    assert {"loss_relation", "gradient_norm_relation", "gradient_norm_soft"} <= set(curves[0][2])
