"""The settings of a corpus: its kind, where its files are, how its lists are written."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from sharding.base.settings import Settings, unit
from sharding.base.text import known_encoding


class CorpusSettings(Settings):
    """What a corpus is and where its files are."""

    kind: Literal["auto", "folder", "csv", "jsonl", "parquet", "sports1m", "kinetics", "ucf101", "hmdb51"] = (
        pydantic.Field(default="auto", description="format of the corpus; auto: detected from its files")
    )
    media: str | None = pydantic.Field(
        default=None,
        description="folder or URL that the listed videos lie below; null: the list's folder or one beside it",
    )
    labels: str | None = pydantic.Field(
        default=None, description="file of class names, one a line; line 1 is class 0; null: none"
    )
    labels_separator: str | None = pydantic.Field(
        default=None, description="text between the labels of a table's cell; null: a cell is one label"
    )
    encoding: Annotated[str, pydantic.AfterValidator(known_encoding)] | None = pydantic.Field(
        default=None,
        description="text encoding of lists and class files, e.g. cp1252; null: UTF-8, or what a byte-order mark says",
    )
    fold: int = pydantic.Field(
        1, ge=0, le=9, description="fold of the cross-validation: 1 to 3 of UCF101 and HMDB51, 0 to 9 of Sports-1M"
    )
    roots: tuple[str, ...] = pydantic.Field(
        default=(), description="further folders or URLs that the listed videos may lie below"
    )
    validation: float = pydantic.Field(
        default=0.1,
        json_schema_extra=unit("share"),
        ge=0,
        lt=1,
        description="share from 0 to 1 of the source videos for the split val, where the corpus has no splits",
    )

    @pydantic.field_validator("labels_separator")
    @classmethod
    def _not_empty(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("it is empty; in YAML, and where the shell takes it away, put it in quotes: \"'|'\"")
        return value
