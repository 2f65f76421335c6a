"""The table of findings: a line each, its remedy below, what acts on a terminal written as codes, a sum at the end."""

from __future__ import annotations

import pytest

from cluster.terminal.findings_table import FindingsTable


def test_findings_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    table = FindingsTable(8)
    table.begin("disk")
    table.add("disk", "ok", "much room", "")
    table.add("store", "wrong", "s3://b\x1b[31m\n: refused", "mend it")
    table.add("ray", "skipped", "not here", "")
    table.add("video", "ok", "well", "")
    table.end()
    assert capsys.readouterr() == (
        "ok       disk      much room\n"
        "WRONG    store     s3://b\\x1b[31m\\n: refused\n"
        "                   remedy: mend it\n"
        "skipped  ray       not here\n"
        "ok       video     well\n"
        "2 ok, 1 wrong, 1 skipped\n",
        "",
    )
