"""Validate the configured settings of losses against the fields of each loss.

A family of answers has its own losses by name (`LearnFacet.LOSSES`), which are the argument ``kinds`` here. The fields
of a loss are its settings (`losses.base.Loss`), so that a new loss needs no code here or in the configuration. A few
names mean the same in every loss, and the configuration has them in another form than the loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from typing import Annotated, Any, Literal, cast, get_type_hints

import pydantic
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from ray_distill.config import LossConfig, Steps
from ray_distill.config.section import Temperature
from ray_distill.errors import ConfigError
from ray_distill.losses.base import Labels, Loss
from ray_distill.losses.buckets import temperature_index
from ray_distill.losses.layers import LayerLoss
from ray_distill.students.objective.schedules import stage_starts
from ray_distill.text import did_you_mean

#: The losses of a family of answers, by configured name.
LossKinds = Mapping[str, type[Loss]]
#: Form in which a configuration pairs student layers with stored teacher layers.
LayerMap = Literal["uniform", "last"] | dict[Annotated[int, pydantic.Field(ge=0)], Annotated[int, pydantic.Field(ge=0)]]
#: Form in a configuration of the fields that mean the same in every loss.
FORMS: Mapping[str, Any] = {"layers": LayerMap, "temperature": Temperature | Steps}
#: A temperature that the labels decide (`choose_temperature`); before they are read, it is 1.
AUTO = "auto"
#: Fields that are not settings: the run measures them.
MEASURED = frozenset({"scales"})


def known_loss(name: str, kinds: LossKinds) -> type[Loss]:
    """Return the class of a loss.

    Raises:
        ConfigError: the family has no loss of that name; the message lists those that it has.
    """
    if name not in kinds:
        raise ConfigError(
            f"student.losses: unknown loss {name!r}; there are {', '.join(sorted(kinds))}{did_you_mean(name, kinds)}"
        )
    return kinds[name]


def fields_of(kind: type[Loss]) -> tuple[Field[Any], ...]:
    """Return the settings of a loss, which is a dataclass."""
    return fields(cast("Any", kind))


def follows_labels(name: str, kinds: LossKinds) -> bool:
    """Return whether a loss compares with true labels; all others use the teacher."""
    return known_loss(name, kinds).follows_labels


def settings_of(name: str, config: LossConfig, kinds: LossKinds) -> dict[str, Any]:
    """Return all settings of a loss except its weight.

    Settings that are not given have their defaults.

    Raises:
        ConfigError: a loss or setting is unknown, or a value is invalid; the message names it.
    """
    kind = known_loss(name, kinds)
    known = {field.name: field.default for field in fields_of(kind) if field.name not in MEASURED}
    where, types = f"student.losses.{name}", get_type_hints(kind)
    for setting in config.settings:
        if setting not in known:
            raise ConfigError(
                f"{where}.{setting}: unknown field; the loss {name!r} has {', '.join(['weight', *known])}"
                f"{did_you_mean(setting, known)}"
            )
    return {
        setting: _fitting(f"{where}.{setting}", config.settings[setting], FORMS.get(setting, types[setting]))
        if setting in config.settings
        else "uniform"
        if setting == "layers"
        else default
        for setting, default in known.items()
    }


def plain_settings(name: str, config: LossConfig, kinds: LossKinds) -> dict[str, Any]:
    """Return `settings_of` and the weight as plain JSON values.

    Two results are equal exactly if the losses are equal.
    """
    values: dict[str, Any] = to_jsonable_python({"weight": config.weight, **settings_of(name, config, kinds)})
    return values


def stages_of(
    name: str, settings: Mapping[str, Any], steps: int, temperatures: Sequence[float] | None
) -> list[tuple[int, dict[str, float]]]:
    """Return the first step and the changed settings of each stage of a loss.

    A loss without a temperature has one stage, from step 0, that changes nothing. If ``temperatures`` is None, the loss
    reads the teacher at any temperature.

    Raises:
        ConfigError: the labels do not declare a temperature; the message names the declared ones.
    """
    if "temperature" not in settings:
        return [(0, {})]
    value = 1.0 if settings["temperature"] == AUTO else settings["temperature"]
    stages = value.step if isinstance(value, Steps) else ((0.0, value),)
    return [
        (start, {"temperature": temperature if temperatures is None else _declared(name, temperature, temperatures)})
        for start, temperature in stage_starts(stages, steps)
    ]


def temperatures_of(losses: Mapping[str, LossConfig], temperatures: Sequence[float], kinds: LossKinds) -> list[float]:
    """Return the temperatures at which a run's losses need the mass outside the stored classes.

    They are among the declared ones.

    Raises:
        ConfigError: as `stages_of`.
    """
    found = {
        changed["temperature"]
        for name, config in losses.items()
        if not known_loss(name, kinds).any_temperature
        for _, changed in stages_of(name, settings_of(name, config, kinds), 1, temperatures)
        if changed
    }
    return sorted(found)


def layer_maps(losses: Mapping[str, LossConfig], kinds: LossKinds) -> dict[str, Any]:
    """Return the configured layer pairing of each loss of hidden states, by its name.

    A pairing is ``uniform``, ``last`` or the pairs.
    """
    return {
        name: settings_of(name, config, kinds)["layers"] for name, config in losses.items() if needs_layers(name, kinds)
    }


def needs_layers(name: str, kinds: LossKinds) -> bool:
    """Return whether there is a loss of that name that compares hidden states."""
    kind = kinds.get(name)
    return kind is not None and issubclass(kind, LayerLoss)


def refuse_labels(loss: Loss, name: str, labels: Labels) -> None:
    """Refuse labels that a loss cannot be used with.

    Raises:
        ConfigError: the labels are refused, for the reason given by the loss.
    """
    try:
        loss.check(labels)
    except ValueError as error:
        raise ConfigError(f"student.losses.{name}: {error}") from error


def _declared(name: str, temperature: float, temperatures: Sequence[float]) -> float:
    try:
        return temperatures[temperature_index(tuple(temperatures), temperature)]
    except ValueError as error:
        raise ConfigError(f"student.losses.{name}: {error}") from error


def _fitting(where: str, value: Any, form: Any) -> Any:
    """Validate a value and return it in the form of its field.

    Raises:
        ConfigError: the value is invalid.
    """
    if where.endswith(".temperature") and value == AUTO:
        return value
    if where.endswith(".temperature") and isinstance(value, Mapping) and set(value) != {"step"}:
        raise ConfigError(
            f"{where}: a temperature steps through declared ones, as in {{step: [[0, 2], [0.5, 1]]}}, and does not "
            "change continuously, because between declared temperatures the mass outside the stored classes is "
            f"unknown; found {dict(value)!r}"
        )
    try:
        return TypeAdapter(form).validate_python(value)
    except ValidationError as error:
        messages = dict.fromkeys(item["msg"].removeprefix("Value error, ") for item in error.errors())
        message = ", or ".join(text[0].lower() + text[1:] for text in messages)
        raise ConfigError(f"{where}: {message}; found {value!r}") from error
