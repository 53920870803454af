"""Make the JSON schema of a campaign's file from configuration, tasks and losses."""

import inspect
from typing import Any, get_type_hints

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

from ray_distill.config import Campaign
from ray_distill.losses.base import Loss
from ray_distill.students.data.answer_format import learn_facet
from ray_distill.students.objective.loss_settings import FORMS, MEASURED, fields_of
from ray_distill.tasks.catalogue import TASKS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: Keys of the configuration's own, which mean nothing to an editor.
_OWN = ("decides", "path")


def campaign_schema() -> dict[str, Any]:
    """Return the JSON schema of a campaign's file, with descriptions."""
    schema = _plain(Campaign.model_json_schema(by_alias=True, mode="validation"))
    schema["properties"]["task"] = {
        "description": "a name of the catalogue of tasks, or package.module:object",
        "anyOf": [{"enum": list(TASKS)}, {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_]"}],
    }
    weight = schema["$defs"]["LossConfig"]["properties"]
    known = losses()
    for name, loss in known.items():
        schema["$defs"] |= loss.pop("$defs")
        loss["properties"] = weight | loss["properties"]
        known[name] = loss | {"type": "object", "additionalProperties": False}
    schema["$defs"]["StudentConfig"]["properties"]["losses"]["properties"] = known
    # A task of the user's own may bring losses of its own.
    listed = {"properties": {"task": {"enum": list(TASKS)}}}
    only = {"properties": {"losses": {"propertyNames": {"enum": list(known)}}}}
    return {"$schema": DIALECT, **schema, "if": listed, "then": {"properties": {"student": only}}}


def losses() -> dict[str, dict[str, Any]]:
    """Return the losses of the catalogue's tasks: description, properties and definitions."""
    kinds = {name: kind for task in TASKS.values() for name, kind in learn_facet(task.answers).LOSSES.items()}
    return {name: _loss(kind) for name, kind in kinds.items()}


def _loss(kind: type[Loss]) -> dict[str, Any]:
    types, properties, definitions = get_type_hints(kind), dict[str, Any](), dict[str, Any]()
    for field in fields_of(kind):
        if field.name not in MEASURED:
            found = _schema(FORMS.get(field.name, types[field.name]))
            definitions |= found.pop("$defs", {})
            properties[field.name] = found
    return {"description": inspect.getdoc(kind) or "", "properties": properties, "$defs": definitions}


def _schema(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of a type; one that accepts all if JSON cannot describe it."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        return adapter.json_schema()
    except (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError):
        return {}


def _plain(schema: Any) -> Any:
    """Return a schema without the configuration's own keys."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _plain(item) for key, item in schema.items() if key not in _OWN or isinstance(item, dict)}
