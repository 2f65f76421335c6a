"""A command's settings as rows for people and programs: key, type, default, unit and description."""

from __future__ import annotations

import shutil
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sharding.base.settings import user_fields

_LIMITS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
_INDENT, _OR_NULL = "    ", " or null"
_PLAIN = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path", type(None): "null"}


@dataclass(frozen=True)
class SettingRow:
    """One setting as users write it. `default` is None where there is none and it `must` be given; `unit` may be ""."""

    key: str
    type: str
    must: bool
    default: Any
    unit: str
    description: str


def setting_rows(model: type[pydantic.BaseModel]) -> list[SettingRow]:
    """All settings of a model, those of models inside it below their field's key, in their order."""
    return list(_rows(model, None, ""))


def print_settings(rows: list[SettingRow]) -> None:
    """Print each setting: key, type, unit and default, and below them its description, wrapped to the terminal."""
    width = min(120, max(60, shutil.get_terminal_size((100, 24)).columns))
    for row in rows:
        default = "required" if row.must else f"default {value_text(row.default)}"
        facts = ", ".join(filter(None, (row.type, row.unit, default)))
        head = textwrap.wrap(f"{row.key}: {facts}", width, subsequent_indent="  ", break_long_words=False)
        text = textwrap.wrap(row.description, width, initial_indent=_INDENT, subsequent_indent=_INDENT)
        print("\n".join([*head, *text]))


def _rows(model: type[pydantic.BaseModel], instance: pydantic.BaseModel | None, above: str) -> Iterator[SettingRow]:
    """The rows below the key `above`; their defaults are those of `instance` where there is one."""
    for key, name, field in _fields(model):
        path = f"{above}.{key}" if above else key
        default = _default(field) if instance is None else getattr(instance, name)
        inside, many = _model_in(field.annotation)
        if inside is None or many or _is_optional(field.annotation):
            must = default is PydanticUndefined
            unit = (field.json_schema_extra or {}).get("unit", "") if isinstance(field.json_schema_extra, dict) else ""
            words = " ".join((field.description or "").split())
            yield SettingRow(path, _type_text(field), must, None if must else _plain(default), str(unit), words)
        if inside is not None:
            below = default if isinstance(default, pydantic.BaseModel) else None
            yield from _rows(inside, below, f"{path}[]" if many else path)


def _fields(model: type[pydantic.BaseModel]) -> Iterator[tuple[str, str, FieldInfo]]:
    """(key as users write it, attribute, field) of each field."""
    for name, field in user_fields(model).items():
        yield field.alias or name, name, field


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def _plain(value: Any) -> Any:
    """A default in JSON's types."""
    return pydantic.TypeAdapter(Any).dump_python(value, mode="json")


def _model_in(annotation: Any) -> tuple[type[pydantic.BaseModel] | None, bool]:
    """The model that a field holds, if any, and whether it holds many of them."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation, False
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    for argument in arguments if origin is not Literal else ():
        inside, many = _model_in(argument)
        if inside is not None:
            return inside, many or origin in (list, tuple, dict)
    return None, False


def _is_optional(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _type_text(field: FieldInfo) -> str:
    """A field's type in words, with the limits of a number."""
    limits = [
        f"{sign} {getattr(mark, name):,}"
        for mark in field.metadata
        for name, sign in _LIMITS.items()
        if getattr(mark, name, None) is not None
    ]
    text, limit = _annotation_text(field.annotation), " and ".join(limits)
    if not limit:
        return text
    return f"{text.removesuffix(_OR_NULL)} {limit}{_OR_NULL if text.endswith(_OR_NULL) else ''}"


def _annotation_text(annotation: Any) -> str:
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _annotation_text(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_annotation_text, arguments))
    if origin is tuple and Ellipsis not in arguments:
        return f"[{', '.join(map(_annotation_text, arguments))}]"
    if origin in (list, tuple):
        return f"list of {_annotation_text(arguments[0])}"
    if origin is dict:
        return f"{{{': '.join(map(_annotation_text, arguments))}}}"
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return "the settings below"
    return getattr(annotation, "__name__", "any value")


def value_text(value: Any) -> str:
    """A default as it is written in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return repr(value) if value == "" else str(value)
