"""Names that MLflow refuses are wrong fields of the campaign, before anything is spent."""

from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.utils import validation
from pydantic import ValidationError

from ray_distill.config import GateConfig, TrackingConfig
from ray_distill.config.judge import MAX_ALIAS, MAX_EXPERIMENT, MAX_MODEL_NAME

ALIASES = ["champion", "prod-2", "v2x", "latest", "Latest", "v2", "V10", "prod v2", "a/b", "", "é", "x" * 256]
MODELS = ["intent", "o'hara", "team.intent", "a b", "team/intent", "a:b", ".", "..", "..a", " ", "", "/a", "a/../b"]
EXPERIMENTS = ["team", "/Users/me/intent", "a:b", "", "x" * 501]


def _ours(kind: Any, **field: str) -> bool:
    try:
        kind(**field)
    except ValidationError:
        return False
    return True


def _mlflow(*checks: Any, name: str) -> bool:
    try:
        for check in checks:
            check(name)
    except MlflowException:
        return False
    return True


@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_is_accepted_where_mlflow_accepts_it(name: str) -> None:
    """`latest` and v with a number are MLflow's own."""
    checks = (validation._validate_model_alias_name, validation._validate_model_alias_name_reserved)
    assert _ours(GateConfig, alias=name) == _mlflow(*checks, name=name)


@pytest.mark.parametrize("name", MODELS)
def test_a_registered_name_is_accepted_where_mlflow_accepts_it(name: str) -> None:
    """Slashes and colons are parts of MLflow's model URIs."""
    assert _ours(GateConfig, model_name=name) == _mlflow(validation._validate_model_name, name=name)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_accepted_where_mlflow_accepts_it(name: str) -> None:
    """Databricks' paths too."""
    assert _ours(TrackingConfig, experiment=name) == _mlflow(validation._validate_experiment_name, name=name)


def test_the_limits_are_those_of_mlflow() -> None:
    """A new release with other limits is noticed; the length of a model's name is its database column's."""
    from mlflow.store.model_registry.dbmodels.models import SqlRegisteredModel

    assert validation.MAX_REGISTERED_MODEL_ALIAS_LENGTH == MAX_ALIAS
    assert validation.MAX_EXPERIMENT_NAME_LENGTH == MAX_EXPERIMENT
    assert SqlRegisteredModel.__table__.columns["name"].type.length == MAX_MODEL_NAME


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"alias": "latest"}, "MLflow reserves `latest`"),
        ({"alias": "prod v2"}, "letters, digits, _ or -"),
        ({"model_name": "team/intent"}, "without / and :"),
        ({"model_name": "x" * 257}, "1 to 256 characters"),
    ],
)
def test_the_message_has_the_rule(field: dict[str, str], says: str) -> None:
    """A reader learns what to write instead."""
    with pytest.raises(ValidationError, match=says):
        GateConfig(**field)
