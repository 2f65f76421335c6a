"""Figures of a benchmark as a table for people, and as a file for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Column = tuple[str, str, str]  # heading, key of the figure, its format with alignment and width, e.g. ">9.2f"


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """A line of headings and a line a row."""
    lines = [" ".join(f"{heading:{form.partition('.')[0]}}" for heading, _, form in columns)]
    lines += [" ".join(f"{row[key]:{form}}" for _, key, form in columns) for row in rows]
    return "\n".join(lines)


def write_figures(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All figures as JSON, and a line that says where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1))
    print(f"figures: {path}")
