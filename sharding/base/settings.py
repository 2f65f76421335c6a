"""Settings: typed models, read from YAML files and their bases and `key.path=value`, refused with the field's path."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import yaml
from pydantic.fields import FieldInfo

from sharding.base.errors import UserError
from sharding.base.printable import visible
from sharding.base.text import load_yaml, nfc, read_text

BASE = "base"  # the key by which a settings file names the files that it goes on from
LARGEST = 2**53  # of any setting: beyond it neither JSON nor a float holds every whole number
Seconds = Annotated[  # a wait: what clocks and threads can count
    float, pydantic.Field(gt=0, le=366 * 86400, json_schema_extra={"unit": "seconds"})
]


class Settings(pydantic.BaseModel):
    """Base of all settings: unknown keys are refused, a value once made never changes.

    So are numbers that are not finite, or that no arithmetic on them would survive, wherever they stand.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @pydantic.field_validator("*", mode="after")
    @classmethod
    def _numbers_that_can_be_used(cls, value: Any) -> Any:
        if (number := _unusable(value)) is not None:
            raise ValueError(f"{_short(number)} is no number to compute with; it should lie within ±{LARGEST:,}")
        return value


def _unusable(value: Any) -> int | float | None:
    """The first number in a value, however deep in lists and dictionaries, that is not finite or too large."""
    if isinstance(value, int | float):
        return None if -LARGEST <= value <= LARGEST else value
    if isinstance(value, dict):
        value = [*value, *value.values()]
    elif not isinstance(value, list | tuple | set | frozenset):
        return None
    return next((number for each in value if (number := _unusable(each)) is not None), None)


def unit(name: str) -> dict[str, pydantic.JsonValue]:
    """A field's `json_schema_extra` that says in which unit its number is, e.g. "pixels"; "share": from 0 to 1."""
    return {"unit": name}


class Inline:
    """Marks a field whose own fields users write beside those of the model that holds it."""


M = TypeVar("M", bound=pydantic.BaseModel)
Loc = tuple[int | str, ...]
_SHOWN = 200  # characters of a value that does not fit


def load_settings(model: type[M], path: str | None, overrides: Sequence[str] = ()) -> M:
    """The settings of the YAML file at `path` (None: all defaults), changed by `key.path=value` overrides.

    Raises UserError for a file or base that is missing or not YAML, files that are each other's base, and every unknown
    key, wrong type or malformed override, each named by its field's path with what was found.
    """
    where = "the settings given on the command line"
    if path is not None:
        bases = settings_files(path)[1:]
        where = f"{path} ({BASE} {', '.join(bases)})" if bases else path
    return validate(model, settings_tree(path, overrides), where)


def settings_tree(path: str | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What the YAML file at `path` (None: nothing) and the overrides say, as users write it; errors of `load_settings`.

    Settings of the files named by `base` are among them. Whether a model has such settings is not asked.
    """
    tree = _composed(path, ())[0] if path is not None else {}
    for override in overrides:
        _apply(tree, override)
    return tree


def settings_files(path: str) -> list[str]:
    """The paths of a settings file and of all its bases, each once; errors of `load_settings`."""
    return list(dict.fromkeys(_composed(path, ())[1]))


def settings_text(path: str, overrides: Sequence[str] = ()) -> str:
    """The text of one settings file that says what a file, its bases and the overrides do; errors of `load_settings`.

    It begins with the comments that the file begins with.
    """
    tree = settings_tree(path, overrides)
    lines = read_text(Path(path), path, "settings file").splitlines(keepends=True)
    head = "".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)


def validate(model: type[M], tree: dict[str, Any], where: str) -> M:
    """`tree`, as users write it, as an instance of `model`; raises UserError naming every field that does not fit."""
    try:
        return model.model_validate(nested(model, tree))
    except pydantic.ValidationError as error:
        problems = [_problem(model, detail) for detail in error.errors(include_url=False)]
    what = problems[0] if len(problems) == 1 else "\n".join([f"{len(problems)} settings do not fit:", *problems])
    raise UserError(what, where, "correct the settings named above, then run the command again")


def inlined(model: type[pydantic.BaseModel]) -> dict[str, type[pydantic.BaseModel]]:
    """The fields of a model that are marked `Inline`, and the models that they hold."""
    return {
        name: next(_models_in(field.annotation))
        for name, field in model.model_fields.items()
        if any(isinstance(mark, Inline) for mark in field.metadata)
    }


def nested(model: type[pydantic.BaseModel], tree: dict[str, Any]) -> dict[str, Any]:
    """A tree as users write it, with what belongs to an inlined field put below that field's name.

    A key that belongs nowhere goes to the first of them, which refuses it. No two may know a key by the same name.
    """
    parts = inlined(model)
    if not parts:
        return tree
    owner = {key: name for name, part in parts.items() for key in _keys(part)}
    result: dict[str, Any] = {name: {} for name in parts}
    for key, value in tree.items():
        if key in model.model_fields and key not in parts:
            result[key] = value
        else:
            result[owner.get(key, next(iter(parts)))][key] = value
    return result


def user_fields(model: type[pydantic.BaseModel]) -> dict[str, FieldInfo]:
    """A model's fields as users know them: those of inlined models in the place of the fields that hold them."""
    parts, result = inlined(model), dict[str, FieldInfo]()
    for name, field in model.model_fields.items():
        result |= parts[name].model_fields if name in parts else {name: field}
    return result


def _keys(model: type[pydantic.BaseModel]) -> set[str]:
    """The names that users give the fields of a model."""
    return {field.alias or name for name, field in model.model_fields.items()}


def digest(settings: pydantic.BaseModel | dict[str, Any]) -> str:
    """sha256 (hex) of the settings' canonical JSON."""
    tree = settings if isinstance(settings, dict) else settings.model_dump(mode="json")
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(before: Any, now: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(field path, value before, value now) of every leaf in which two JSON trees differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [
            leaf
            for key in keys
            for leaf in differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if before == now or _canonical(before) == _canonical(now) else [(path, before, now)]


def _canonical(value: Any) -> str:
    """A JSON value as a text in which names of one spelling are one, however their letters are composed."""
    return nfc(json.dumps(value, sort_keys=True, ensure_ascii=False))


def _composed(path: str, above: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """What a settings file says, on top of its bases, and the files that it comes from; `above` go on from it."""
    own = str(Path(path).resolve())
    if own in above:
        circle = " → ".join([*above[above.index(own) :], own])
        raise UserError(f"these files go on from one another: {circle}", path, f"take one of them out of a `{BASE}`")
    tree, whole, files = _read_yaml(path, named_by=above[-1] if above else None), dict[str, Any](), [path]
    named = tree.pop(BASE, [])
    bases = [named] if isinstance(named, str) else named
    if not isinstance(bases, list) or not all(isinstance(name, str) and name for name in bases):
        what = f"{BASE}: found {_short(named)} ({type(named).__name__}); it names settings files, relative to this one"
        raise UserError(what, path, f"write {BASE}: FILE.yaml, or {BASE}: [FILE.yaml, OTHER.yaml]")
    for name in bases:
        below, more = _composed(os.path.normpath(Path(path).parent / name), (*above, own))
        whole, files = _merged(whole, below), [*files, *more]
    return _merged(whole, tree), files


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two trees as one: of a key in both, mappings are merged, and of all else `above` has its value."""
    both = {
        key: _merged(below[key], value) if isinstance(below.get(key), dict) and isinstance(value, dict) else value
        for key, value in above.items()
    }
    return {**below, **both}


def _read_yaml(path: str, named_by: str | None = None) -> dict[str, Any]:
    try:
        tree = load_yaml(read_text(Path(path), path, "settings file"))
    except FileNotFoundError:
        if named_by is not None:
            what = f"there is no such settings file, and {named_by} names it as a base"
            raise UserError(what, path, f"correct `{BASE}` there; its paths begin at that file's folder") from None
        raise UserError("there is no such settings file", path, "check the path; recipes are in configs/") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a date or a number that is none
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else path
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"not valid YAML: {problem}", place, "correct it there") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        found = type(tree).__name__
        raise UserError(f"settings are `key: value` lines; found a {found}", path, "write `key: value` lines")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in `tree`, in place."""
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"not a setting: {override!r}", "the command line", "write it as key.path=value, e.g. seed=7")
    if keys[0] == BASE:
        raise UserError(f"{BASE} is no setting: it names files", "the command line", f"write {BASE} in a settings file")
    try:
        # A mark alone (labels_separator=,) is itself: to YAML it begins something; only ~ is a value.
        value = text if len(text) == 1 and not text.isalnum() and text != "~" else load_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error)
        what = f"{visible(key)}: the value {_short(text)} is not valid YAML: {problem}"
        raise UserError(what, "the command line", "correct the value, or put it in quotes") from error
    node: Any = tree
    for depth, part in enumerate(keys):
        if not isinstance(node, dict):
            above = ".".join(keys[:depth])
            raise UserError(
                f"{visible(key)}: {visible(above)} is {node!r} and has no fields below it",
                "the command line",
                f"set {above} itself",
            )
        if depth == len(keys) - 1:
            node[part] = value
        elif node.get(part) is None:
            node[part] = {}
        node = node[part]


def _problem(model: type[pydantic.BaseModel], detail: Any) -> str:
    """One line: field path, what is wrong, what was found, and near names for an unknown key."""
    loc: Loc = detail["loc"]
    parts = inlined(model)
    shown = loc[1:] if loc and loc[0] in parts else loc
    field = visible(".".join(str(part) for part in shown)) or "settings"
    if detail["type"] == "extra_forbidden":
        if len(shown) == 1:
            names = sorted({*(_keys(model) - {*parts}), *(key for part in parts.values() for key in _keys(part))})
        else:
            names = sorted({name for parent in _models_at(model, loc[:-1]) for name in parent.model_fields})
        near = difflib.get_close_matches(str(loc[-1]), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known here: {', '.join(names)}"
        return f"{field}: there is no such setting; {hint}"
    if detail["type"] == "missing":
        return f"{field}: is required and was not given"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if not shown:
        return message
    value, allowed = detail.get("input"), ""
    if detail["type"].startswith(("int_", "float_", "finite")):  # the bounds are named only of numbers of that type
        allowed = _bounds(model, loc)
    return f"{field}: found {_short(value)} ({type(value).__name__}); {message[:1].lower()}{message[1:]}{allowed}"


def _short(value: Any) -> str:
    """A value in a message, cut where it is long: a number of a thousand digits is one."""
    try:
        text = repr(value)
    except ValueError:  # more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _bounds(model: type[pydantic.BaseModel], loc: Loc) -> str:
    """What a number at this location must be, e.g. "; it should be less than 1"; nothing where it is free."""
    words = {"ge": "greater than or equal to", "gt": "greater than", "le": "less than or equal to", "lt": "less than"}
    limits = [
        f"{word} {getattr(limit, name)}"
        for parent in _models_at(model, loc[:-1])
        if loc[-1] in parent.model_fields
        for limit in parent.model_fields[str(loc[-1])].metadata
        for name, word in words.items()
        if getattr(limit, name, None) is not None
    ]
    return f"; it should be {' and '.join(limits)}" if limits else ""


def _models_at(model: type[pydantic.BaseModel], loc: Loc) -> list[type[pydantic.BaseModel]]:
    """The models that a location of pydantic's error list passes through last."""
    current = [model]
    for part in loc:
        below = [
            inner
            for parent in current
            if part in parent.model_fields
            for inner in _models_in(parent.model_fields[str(part)].annotation)
        ]
        current = below or current
    return current


def _models_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)
