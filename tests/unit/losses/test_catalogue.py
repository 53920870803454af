"""A loss has settings and what `Loss` declares, nothing that a run would overlook."""

from dataclasses import fields, is_dataclass

import pytest

from ray_distill.losses.base import Loss
from ray_distill.losses.buckets import BucketLoss
from ray_distill.losses.catalogue import LOSSES
from ray_distill.losses.divergences import DIVERGENCES, build_divergence
from ray_distill.losses.relations import GroupLoss

#: Names that only the loss itself reads.
OWN = {"divergences", "name", "least", "compare"}
DECLARED = {name for base in (Loss, BucketLoss, GroupLoss) for name in dir(base)}


@pytest.mark.parametrize("name", LOSSES)
def test_a_public_name_of_a_loss_is_a_setting_or_declared(name: str) -> None:
    """A misspelt ``follows_label`` would be ignored in silence."""
    kind = LOSSES[name]
    assert is_dataclass(kind) and issubclass(kind, Loss)
    public = {attribute for attribute in dir(kind) if not attribute.startswith("_")}
    assert public - {field.name for field in fields(kind)} - DECLARED - OWN == set()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_parameters_of_a_divergence_are_its_fields(name: str) -> None:
    """A name builds the divergence with its defaults, a mapping with other values."""
    built = build_divergence(name)
    given = {field.name: 0.25 for field in fields(DIVERGENCES[name])}
    assert build_divergence({name: given}) == DIVERGENCES[name](**given) and type(built) is DIVERGENCES[name]


@pytest.mark.parametrize("setting", ["klx", {}, {"jsd": {}, "forward_kl": {}}])
def test_an_unknown_divergence_is_refused_with_the_known_ones(setting: object) -> None:
    """Also where none or two are given."""
    with pytest.raises(ValueError, match="a divergence is one of forward_kl, reverse_kl, jsd"):
        build_divergence(setting)  # type: ignore[arg-type]
