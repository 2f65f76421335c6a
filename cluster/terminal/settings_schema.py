"""The JSON schema of a command's settings files, by which editors complete and check them."""

from __future__ import annotations

from typing import Any

import pydantic

from sharding.base.settings import BASE, Settings, user_fields

_BASE = {
    "title": "Base",
    "description": "settings files that this one goes on from, relative to it; later ones win over earlier ones, and "
    "this file over all of them",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def flat_schema(model: type[pydantic.BaseModel], title: str) -> dict[str, Any]:
    """The JSON schema of a settings file of a model, as users write it.

    A file with a `base` need not say what is required, as its bases may; so what is required inside a setting is left
    to the command, but for the entries of lists, which no two files share.
    """
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in user_fields(model).items()}
    schema = pydantic.create_model(title, __base__=Settings, **fields).model_json_schema()
    for name in _merged_definitions(schema["properties"], schema.get("$defs", {})):
        schema["$defs"][name].pop("required", None)
    schema["properties"] = {BASE: _BASE, **schema["properties"]}
    if required := schema.pop("required", None):
        schema["anyOf"] = [{"required": [BASE]}, {"required": required}]
    return schema


def _merged_definitions(properties: dict[str, Any], definitions: dict[str, Any]) -> set[str]:
    """The names of the models of which several files may each say a part: those that no list holds."""
    names = set[str]()
    for each in properties.values():
        for choice in (each, *each.get("anyOf", ()), *each.get("allOf", ())):
            name = choice.get("$ref", "").rpartition("/")[2]
            if name and name not in names:
                names |= {name} | _merged_definitions(definitions[name].get("properties", {}), definitions)
    return names
