"""Every path of a campaign is marked as one, so that what checks paths sees all of them."""

import re
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ray_distill.config import Campaign, parse_config
from ray_distill.config.identity import decides
from ray_distill.config.paths import path_role, paths_of

#: Addresses of services, and an interpreter, which must be absolute anyway.
NO_PATHS = {"tracking.uri", "tracking.registry_uri", "labels.teacher.vllm.python"}


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        for kind in (field.annotation, *get_args(field.annotation)):
            for inner in (kind, *get_args(kind)):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    yield from _fields(inner, f"{prefix}{name}.")


def test_fields_that_speak_of_places_are_marked() -> None:
    """A new field for a file, a folder or a URL must say whether it is read or written."""
    place = re.compile(r"\bURLs?\b|\bfile\b|\bfile or|folder or|\bsources? (of|whose)")
    unmarked = {
        name
        for name, field in _fields(Campaign)
        if place.search(field.description or "") and path_role(field) is None and "str" in str(field.annotation)
    }
    assert unmarked - NO_PATHS == set()


def test_outputs_decide_no_result_and_inputs_do() -> None:
    """Where results are written never changes them."""
    roles = {name: (path_role(field), decides(field)) for name, field in _fields(Campaign) if path_role(field)}
    assert {name for name, (role, _) in roles.items() if role == "output"} == {"output", "labels.store"}
    assert all(decided == (role == "input") for role, decided in roles.values())


def test_paths_are_listed_with_their_fields() -> None:
    """Functions of the user's own are not paths."""
    config = parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "snapshot": {"source": ["a.csv", "/b.csv"]},
            "labels": {"teacher": {"model": "m.x:f"}, "store": "s3://x"},
        }
    )
    found = [(path.field, path.value, path.relative) for path in paths_of(config)]
    assert found == [
        ("snapshot.source", "a.csv", True),
        ("snapshot.source", "/b.csv", False),
        ("labels.store", "s3://x", False),
    ]
