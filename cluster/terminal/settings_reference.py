"""All commands' settings as one page of Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cluster.terminal.settings_rows import SettingRow, value_text

_HEAD = """\
# Settings

Every setting of every command, as the code says it. A setting stands in the command's YAML file (`reelscale COMMAND FILE.yaml`) or after it as `KEY.PATH=VALUE`, which wins over the file; `a[].b` is a field of
each entry of the list `a`. One command's alone: `reelscale settings COMMAND`; for an editor: `reelscale settings COMMAND --json-schema`.
A file that begins with `base: OTHER.yaml` says what differs from others ([recipes of a base](README.md#recipes-of-a-base)).

This page is generated, and a test holds it equal to the code: `reelscale settings --reference > configs/SETTINGS.md`
"""  # noqa: E501
_COLUMNS = "| setting | value | default | unit | what it does |\n|---|---|---|---|---|"


def settings_reference(rows: Mapping[str, Sequence[SettingRow]]) -> str:
    """The page: a table of contents, then a table for each title, e.g. `reelscale shard`, of its rows."""
    contents = "\n".join(f"- [{title}](#{_anchor(title)}): {len(of_title)}" for title, of_title in rows.items())
    tables = [f"## {title}\n\n{_COLUMNS}\n" + "\n".join(map(_table_row, of_title)) for title, of_title in rows.items()]
    return "\n\n".join([_HEAD.rstrip("\n"), contents, *tables]) + "\n"


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _table_row(row: SettingRow) -> str:
    default = "required" if row.must else f"`{value_text(row.default)}`"
    cells = (f"`{row.key}`", row.type, default, row.unit, row.description)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
