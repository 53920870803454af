"""Explain what pydantic refuses, and repair it, so that mistakes behind it are found too."""

import copy
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ray_distill.config.campaign import Campaign
from ray_distill.config.reading.document import Document
from ray_distill.config.reading.shapes import everywhere, names_of, section_at
from ray_distill.config.reading.values import misread
from ray_distill.redact import HIDDEN, is_secret, redact, redacted
from ray_distill.text import did_you_mean, near_names

#: Rounds of repairs; each may show mistakes that earlier ones hid.
_ROUNDS = 5
#: Mistakes that are shown; of further ones, only their number.
MOST_SHOWN = 100
_SHOW = reprlib.Repr()
_SHOW.maxstring = _SHOW.maxother = 80
_SHOW.maxlevel = 3


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A campaign read from a document, with everything that is wrong in it."""

    config: Campaign | None
    """The campaign; where something is wrong, with defaults or placeholders instead; None if that is impossible."""
    mistakes: dict[str, str] = field(default_factory=dict)
    """Dotted path to what is wrong there."""
    replaced: frozenset[str] = frozenset()
    """Dotted paths whose values are not the user's."""

    def concerns(self, path: str) -> bool:
        """Return whether a finding may follow from a replaced value at, above or below its path."""
        return any(f"{path}.".startswith(f"{one}.") or f"{one}.".startswith(f"{path}.") for one in self.replaced)


def read(document: Document, elsewhere: Mapping[str, Sequence[str]] | None = None) -> Reading:
    """Validate a document.

    Args:
        document: a campaign's values.
        elsewhere: further settings by name, with their dotted paths, such as those of losses.
    """
    found = document.mistakes | dict(misread(document))
    if "" in found:
        return Reading(config=None, mistakes=found)
    # A rule over a whole section says nothing while one of its fields has an unknown name.
    value, replaced, renamed = copy.deepcopy(document.value), set(found), set[str]()
    for path in found:
        _replace(value, path.split("."))
    for _ in range(_ROUNDS):
        try:
            config = Campaign.model_validate(value)
        except ValidationError as error:
            reading = Reading(config=None, mistakes=found, replaced=frozenset(replaced))
            errors = _by_path(error, value)
            meant = _meant_fields(errors, value)
            errors = {path: items for path, items in errors.items() if path not in meant}
            replaced |= meant
            for path, items in errors.items():
                if not reading.concerns(path) and path not in renamed:
                    explained = len(found) < MOST_SHOWN
                    found[path] = _explain(path.split("."), items, elsewhere or {}) if explained else "is wrong"
            replaced |= {path for path, items in errors.items() if items[0]["type"] != "extra_forbidden"}
            renamed |= {path.rpartition(".")[0] for path in errors if path not in replaced}
            worked = [_replace(value, path.split(".")) for path in errors]
            if not all(worked):
                return Reading(config=None, mistakes=found, replaced=frozenset(replaced))
        else:
            return Reading(config=config, mistakes=found, replaced=frozenset(replaced))
    return Reading(config=None, mistakes=found, replaced=frozenset(replaced))


def _meant_fields(errors: Mapping[str, Sequence[Any]], value: Any) -> set[str]:
    """Return fields that are unset only because their names are misspelt."""
    found = set()
    for path in (path for path, items in errors.items() if items[0]["type"] == "extra_forbidden"):
        *parents, name = path.split(".")
        section, given = section_at(Campaign, parents), value
        for part in parents:
            given = given.get(part, {}) if isinstance(given, dict) else {}
        names = [one for one in names_of(section) if one not in given] if section else []
        found |= {".".join([*parents, one]) for one in near_names(name, names)[:1]}
    return found


def _by_path(error: ValidationError, value: Any) -> dict[str, list[Any]]:
    """Group errors by the dotted path of the value; a union has one for each alternative."""
    found: dict[str, list[Any]] = {}
    for item in error.errors():
        # A list of wrong items is called too short as well: only an empty one is.
        if item["type"] != "too_short" or not item["input"]:
            found.setdefault(".".join(_location(item, value)), []).append(item)
    return found


def _location(item: Any, value: Any) -> list[str]:
    """Return where an error is, without pydantic's names of the alternatives of a union."""
    path: list[str] = []
    for at, part in enumerate(item["loc"]):
        here = isinstance(value, dict) and part in value
        here = here or (isinstance(value, list) and isinstance(part, int) and part < len(value))
        missing = item["type"] == "missing" and at == len(item["loc"]) - 1
        if here:
            value = value[part]
        elif not missing:
            break
        path.append(str(part))
    return path


def _explain(path: Sequence[str], items: Sequence[Any], elsewhere: Mapping[str, Sequence[str]]) -> str:
    """Explain the errors of one value in one line: what is wrong, what was found, what is meant."""
    kinds = {item["type"] for item in items}
    found = items[0]["input"]
    if "missing" in kinds:
        return "is required but missing"
    if "extra_forbidden" in kinds:
        return f"unknown field{_meant(path, elsewhere)}"
    if found is None:
        return "is empty: give it a value, or leave it out for its default"
    if "finite_number" not in kinds and kinds & {"model_type", "dict_type"}:  # a number, though not this one
        return f"should be a section, with its settings below it; found {_shown(path, found)}"
    messages = list(dict.fromkeys(_message(item) for item in items if item["type"] != "model_type"))
    near = did_you_mean(str(found), _expected(items)) if isinstance(found, str) else ""
    return f"{' or '.join(messages)}{near or ''}; found {_shown(path, found)}"


def _shown(path: Sequence[str], found: Any) -> str:
    """Return a value for a message, shortened after its secrets are removed."""
    return HIDDEN if is_secret(path[-1]) else _SHOW.repr(redacted(found))


def _message(item: Any) -> str:
    message: str = redact(item["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:] if message[1:2].islower() else message


def _expected(items: Sequence[Any]) -> list[str]:
    """Return the values that are named as allowed."""
    return [name for item in items for name in re.findall(r"'([^']*)'", str(item.get("ctx", {}).get("expected", "")))]


def _meant(path: Sequence[str], elsewhere: Mapping[str, Sequence[str]]) -> str:
    """Return the near names in the section, else the sections that have a field of this name."""
    *parents, name = path
    section = section_at(Campaign, parents)
    siblings = names_of(section) if section else []
    if near_names(name, siblings):
        return did_you_mean(name, siblings)
    belongs = [*elsewhere.get(name, ()), *(dotted for known, dotted in everywhere(Campaign) if known == name)]
    belongs.sort(key=lambda dotted: -_shared(dotted.split("."), path))
    if belongs:
        sections = [dotted.rpartition(".")[0] or "the file itself" for dotted in belongs[:3]]
        return f"; `{name}` belongs in {' or '.join(sections)}"
    return f"; there are {', '.join(siblings)}" if siblings else ""


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _replace(value: Any, path: Sequence[str]) -> bool:
    """Take a wrong value out, or put a text where one is missing; return whether it worked."""
    *parents, last = path
    for part in parents:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return False
    if isinstance(value, list) and last.isdigit() and int(last) < len(value):
        del value[int(last)]
    elif isinstance(value, dict) and last in value:
        del value[last]
    elif isinstance(value, dict):
        value[last] = "missing"
    return isinstance(value, dict | list)


def lines(mistakes: Mapping[str, str], places: Mapping[str, str]) -> Iterator[str]:
    """Yield mistakes as lines: dotted path, what is wrong, and the line of the file."""
    order = list(places)
    for path in sorted(mistakes, key=lambda path: order.index(path) if path in places else len(order)):
        yield f"{path or '(whole file)'}: {mistakes[path]}{located(path, places)}"


def located(path: str, places: Mapping[str, str]) -> str:
    """Return ``[line 7]`` of a dotted path, or of the section that has it; empty without any."""
    while path and path not in places:
        path = path.rpartition(".")[0]
    return f" [{places[path]}]" if path else ""
