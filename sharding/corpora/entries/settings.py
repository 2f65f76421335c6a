"""The settings of a corpus: its kind, where its files are, how its lists are written."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from sharding.base.settings import Settings
from sharding.base.text import known_encoding


class CorpusSettings(Settings):
    """What a corpus is and where its files are."""

    kind: Literal["auto", "folder", "csv", "jsonl", "parquet", "sports1m", "kinetics", "ucf101", "hmdb51"] = "auto"
    media: str | None = None  # the folder or prefix that holds the videos; None: the list's own
    labels: str | None = None  # a file of class names, one a line, line 1 being class 0
    labels_separator: str | None = None  # between the labels of a table's cell; None: a cell is one label
    encoding: Annotated[str, pydantic.AfterValidator(known_encoding)] | None = None  # of lists and class files
    fold: int = pydantic.Field(1, ge=0, le=9)  # of UCF101, HMDB51 (1 to 3), Sports-1M's cross-validation (0 to 9)
    roots: tuple[str, ...] = ()  # further folders or prefixes that a list may name files of
    validation: float = pydantic.Field(0.1, ge=0, lt=1)  # share of the source videos, where the corpus gives no split

    @pydantic.field_validator("labels_separator")
    @classmethod
    def _not_empty(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("it is empty; in YAML, and where the shell takes it away, put it in quotes: \"'|'\"")
        return value
