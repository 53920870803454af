"""What a configuration may say of a loss: checked against the loss, so that a new one is one file and one line."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from ray_distill.config import LossConfig, Steps, TrainingConfig, parse_config
from ray_distill.errors import ConfigError
from ray_distill.losses import catalogue
from ray_distill.losses.base import Labels, Loss, LossBatch, StudentOutput, teacher_weight
from ray_distill.losses.relations import Cka
from ray_distill.losses.soft import Soft
from ray_distill.students.objective.loss_settings import plain_settings, settings_of, temperatures_of
from ray_distill.students.objective.validate_losses import check_losses, required_layers
from ray_distill.students.objective.weighted_losses import Term, build_terms, group_of

DECLARED = (1.0, 2.0)
TRAINING = TrainingConfig(global_batch=64, micro_batch=32)
STORED = Labels(temperatures=DECLARED, hidden=True, pool="token", basis=True)


def config(**values: Any) -> LossConfig:
    return LossConfig.model_validate(values)


def build(losses: dict[str, LossConfig], steps: int = 10) -> tuple[Term, ...]:
    return build_terms(
        losses, kinds=catalogue.LOSSES, steps=steps, temperatures=DECLARED, layers=dict.fromkeys(losses, {2: 6})
    )


@dataclass(frozen=True, kw_only=True)
class Power(Loss):
    """A loss that nobody has heard of."""

    exponent: float = 2.0

    def weight(self, batch: LossBatch) -> Tensor:
        return teacher_weight(batch).sum()

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        return (output.logits_BV.abs() ** self.exponent).sum()


def test_a_new_loss_is_a_class_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its name in the catalogue its settings can be configured, are checked, and reach it."""
    monkeypatch.setitem(catalogue.LOSSES, "power", Power)  # type: ignore[arg-type]
    (term,) = build({"power": config(weight=0.5, exponent=3)})
    assert term.loss == Power(exponent=3.0) and term.weight(0) == 0.5
    (told,) = check_losses({"power": config(exponent="big")}, STORED, TRAINING, catalogue.LOSSES)
    assert told.startswith("student.losses.power.exponent: input should be a valid number") and told.endswith("'big'")


@dataclass(frozen=True, kw_only=True)
class Anywhere(Power):
    """A loss that reads the teacher at any temperature."""

    temperature: float = 1.0

    any_temperature: ClassVar[bool] = True


def test_a_family_has_its_own_losses_by_the_same_names() -> None:
    """A name means the family's class; an unknown one is refused with the names of the family."""
    kinds: dict[str, type[Loss]] = {"hard": Power, "soft": Anywhere}
    losses = {"hard": config(exponent=3)}
    (term,) = build_terms(losses, kinds=kinds, steps=1, temperatures=DECLARED, layers={})
    assert term.loss == Power(exponent=3.0)
    assert plain_settings("hard", losses["hard"], kinds) == {"weight": 1.0, "exponent": 3.0}
    (told,) = check_losses({"cka": config()}, STORED, TRAINING, kinds)
    assert told == "student.losses: unknown loss 'cka'; there are hard, soft"


def test_a_loss_that_needs_no_tail_takes_any_temperature() -> None:
    """Also one that the labels do not declare; the mass outside the stored classes is then not looked up."""
    kinds: dict[str, type[Loss]] = {"soft": Anywhere}
    losses = {"soft": config(temperature={"step": [[0, 3], [0.5, 1.5]]})}
    assert check_losses(losses, STORED, TRAINING, kinds) == []
    (term,) = build_terms(losses, kinds=kinds, steps=4, temperatures=DECLARED, layers={})
    assert [(start, loss.temperature) for start, loss in term.stages] == [(0, 3.0), (2, 1.5)]  # type: ignore[attr-defined]
    assert temperatures_of(losses, DECLARED, kinds) == []


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("hard", {"temperature": 2}, "student.losses.hard.temperature: unknown field; the loss 'hard' has weight"),
        (
            "soft",
            {"kind": "cosine"},
            "student.losses.soft.kind: unknown field; the loss 'soft' has weight, temperature, divergence, tail",
        ),
        ("soft", {"divergence": "mse"}, "student.losses.soft: a divergence is one of forward_kl, reverse_kl"),
        (
            "soft",
            {"temperature": 3},
            "student.losses.soft: temperature 3 is not declared by the labels, which declare 1",
        ),
        ("soft", {"temperature": {"step": [[0, 2], [0.5, 3]]}}, "temperature 3 is not declared"),
        ("soft", {"temperature": {"linear": [2, 1]}}, "losses.soft.temperature: a temperature steps through declared"),
        ("soft", {"temperature": {"step": [[0.1, 2]]}}, "begin with 0 and rise"),
        (
            "soft",
            {"divergence": {"adaptive_kl": {"head": 1.5}}},
            "student.losses.soft: adaptive_kl needs 0 < head < 1, found 1.5",
        ),
        ("soft", {"divergence": {"jsd": {"skew": 0.5}}}, "student.losses.soft: jsd has no skew; it has beta"),
        ("hidden", {"scales": {6: 1.0}}, "student.losses.hidden.scales: unknown field"),
        ("hidden", {"layers": "first"}, "student.losses.hidden.layers: input should be 'uniform' or 'last', or"),
        (
            "hidden",
            {"kind": "l1"},
            "student.losses.hidden: the loss 'hidden' has the kinds pca, mse, cosine, found 'l1'",
        ),
        ("cka", {"group": 2}, "student.losses.cka: the loss 'cka' needs a group of at least 3 rows, found 2"),
        ("cka", {"group": "many"}, "student.losses.cka.group: input should be a valid integer"),
        ("relation", {"heads": 0}, "student.losses.relation: the loss 'relation' needs at least one head"),
        ("sofft", {}, "student.losses: unknown loss 'sofft'; there are cka, hard"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name: str, values: dict[str, Any], told: str) -> None:
    """Before anything is spent: unknown settings, wrong values, undeclared or continuous temperatures."""
    (found,) = check_losses({name: config(**values)}, STORED, TRAINING, catalogue.LOSSES)
    assert told in found


def test_everything_wrong_is_told_at_once() -> None:
    """One line a loss, and the sizes of groups."""
    losses = {"soft": config(divergence="jsd"), "hard": config(k=1), "cka": config(group=12)}
    found = check_losses(losses, Labels(temperatures=DECLARED, drawn=True), TRAINING, catalogue.LOSSES)
    assert len(found) == 4 and "cannot be used with sampled or hybrid" in found[0] and "hard.k" in found[1]
    assert "student.losses.cka: no hidden states are stored" in found[2]
    assert found[3].startswith("student.training.micro_batch is 32, and a loss compares groups of 12 rows")


def test_a_configuration_that_fits_passes_and_reads_alike_from_json() -> None:
    """Pairs of layers come back from JSON with keys that are texts; defaults are written out for the plan."""
    given = config(layers={2: 6}, kind="pca", weight={"step": [[0, 1], [0.25, 0.5]]})
    again = LossConfig.model_validate_json(given.model_dump_json())
    assert check_losses({"hidden": again}, STORED, TRAINING, catalogue.LOSSES) == []
    assert settings_of("hidden", again, catalogue.LOSSES) == {"layers": {2: 6}, "kind": "pca"}
    assert plain_settings("hidden", again, catalogue.LOSSES) == plain_settings("hidden", given, catalogue.LOSSES)
    assert plain_settings("soft", config(), catalogue.LOSSES) == plain_settings(
        "soft", config(temperature=1, tail="bucket"), catalogue.LOSSES
    )
    assert plain_settings("soft", config(), catalogue.LOSSES)["divergence"] == "forward_kl"


def test_temperatures_step_through_declared_ones() -> None:
    """The loss of a step; the share is of the whole training, and every temperature's stored mass will be looked at."""
    soft = config(temperature={"step": [[0, 2], [0.5, 1]]}, divergence="jsd")
    (term,) = build({"soft": soft}, steps=10)
    assert [term.at(step) for step in (0, 4)] == [Soft(temperature=2.0, divergence="jsd")] * 2
    assert [term.at(step) for step in (5, 9)] == [Soft(temperature=1.0, divergence="jsd")] * 2
    assert temperatures_of({"soft": soft, "hard": config()}, DECLARED, catalogue.LOSSES) == [1.0, 2.0]
    assert temperatures_of({"hard": config()}, DECLARED, catalogue.LOSSES) == []
    assert settings_of("soft", soft, catalogue.LOSSES)["temperature"] == Steps(step=((0, 2), (0.5, 1)))


def test_groups_are_of_one_size() -> None:
    """The sampler keeps blocks of one size together; without such a loss any rows will do."""
    assert group_of(build({"cka": config(group=8), "rkd_angle": config(group=8), "soft": config()})) == 8
    assert group_of(build({"soft": config()})) == 1
    assert build({"cka": config()})[0].loss == Cka(layers={2: 6}, group=16)
    with pytest.raises(ConfigError, match="must be of one size, and cka has 8, rkd_angle has 16"):
        build({"cka": config(group=8), "rkd_angle": config()})


def test_what_a_bundle_must_give() -> None:
    """Projected layers for matching, plain ones for relations."""
    terms = build_terms(
        {"soft": config(), "hidden": config(), "cka": config(), "relation": config()},
        kinds=catalogue.LOSSES,
        steps=1,
        temperatures=DECLARED,
        layers={"hidden": {2: 6}, "cka": {2: 6, 1: 3}, "relation": {0: 6}},
    )
    assert required_layers(terms) == ({2: 6}, (0, 1, 2))


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        ({"step": [[0.2, 1.0]]}, "begin with 0 and rise"),
        ({"step": [[0, 1], [0, 2]]}, "begin with 0 and rise"),
        ({"step": []}, "at least 1 item"),
        ({"step": [[0, 1]], "linear": [1, 0]}, "exactly one of"),
        ({"step": [[0, 1], [1.5, 2]]}, "less than 1"),
    ],
)
def test_steps_of_a_weight_are_checked(weight: dict[str, Any], told: str) -> None:
    """When the file is read."""
    value = {"campaign": "c", "task": "text_classification", "student": {"losses": {"hard": {"weight": weight}}}}
    with pytest.raises(ConfigError, match=told):
        parse_config(value)


def test_the_gradient_of_a_step_is_its_temperatures() -> None:
    """What is trained on changes with the step, not only what is told."""
    from ray_distill.losses.base import SparseTargets
    from ray_distill.students.objective.weighted_losses import combine

    (term,) = build({"soft": config(temperature={"step": [[0, 2], [0.5, 1]]})}, steps=10)
    targets = SparseTargets(
        classes=3,
        ids_NK=torch.arange(3).expand(1, 3),
        logp_NK=torch.tensor([[2.0, 0.0, 1.0]]).log_softmax(-1),
        temperatures=DECLARED,
        log_tail_NT=torch.full((1, 2), -torch.inf),
    )
    batch = LossBatch(
        labels_B=torch.tensor([-1]), distil_B=torch.tensor([True]), example_weight_B=torch.ones(1), targets=targets
    )
    output = StudentOutput(logits_BV=torch.tensor([[0.3, -0.2, 0.5]]))
    values = [float(combine((term,), output, batch, step=step, weights=[1.0])[0]) for step in (0, 9)]
    assert values == [float(Soft(temperature=t)(output, batch)) for t in (2.0, 1.0)] and values[0] != values[1]
