"""JSON files that lie on people's disks: read as what they are due to be, or refused with what to do."""

from __future__ import annotations

import json
from typing import TypeVar

import pydantic

from sharding.errors import UserError

WRITER = "use the version of Reelscale that wrote it"  # a remedy

M = TypeVar("M")


def read_json(data: bytes, kind: type[M], what: str, where: str, remedy: str, newest: int = 1) -> M:
    """The content of a file as an instance of `kind`, any type that pydantic knows.

    `what` the file is, as in "the run's settings.json". A mapping tells its "format", and is of format 1 unless it
    does. Raises UserError for a file that is no JSON, of another format than `newest`, or not of this kind.
    """
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        why = f"not JSON: {error}" if data.strip() else "it is empty"
        raise UserError(f"{what} is damaged: {why}", where, remedy) from error
    if isinstance(tree, dict):
        require_format(tree.get("format", 1), newest, what, where)
    try:
        return pydantic.TypeAdapter(kind).validate_python(tree)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise UserError(f"{what} is damaged: {place}: {first['msg']}", where, remedy) from error


def require_format(found: object, newest: int, what: str, where: str) -> None:
    """Raises UserError for a file of another format than this version writes."""
    if found != newest:
        raise UserError(f"{what} has format {found!r}; this version reads format {newest}", where, WRITER)
