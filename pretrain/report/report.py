"""Writes the report: an HTML page a run, and one that compares runs, with their figures as PNG files beside them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pretrain.report import html
from pretrain.report.comparison import comparison_page
from pretrain.report.run_data import RunFiles, read_run
from pretrain.report.run_page import run_page
from sharding.base.errors import UserError
from sharding.base.text import file_name

PAGE = "report.html"


def write_report(runs: list[Path], out: Path) -> Path:
    """Write `out`/report.html about a run, or comparing several, and the PNG files of its figures beside it.

    The page of a run stands alone: every picture is inside it, and it fetches and runs nothing. A run that was not
    yet evaluated, or not yet validated, gets the report of what there is. A page that compares runs links to their
    own, `out`/NN-NAME/report.html.

    Returns the path of the page. Raises UserError if `runs` is empty or a folder is missing or unreadable.
    """
    if not runs:
        raise UserError("there is no run to report on", "the list of runs", "name at least one run's folder")
    read = [read_run(Path(path)) for path in runs]
    if len(read) == 1:
        return _write_run(read[0], out)
    pages = []
    for number, run in enumerate(read, start=1):
        name = f"{number:02d}-{file_name(run.name, 150)}"
        pages.append(_write_run(run, out / name).relative_to(out).as_posix())
    return _write(
        out, f"Reelscale: {', '.join(run.name for run in read)}", comparison_page(read, pages, html.Album(out))
    )


def _write_run(run: RunFiles, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    return _write(out, f"Reelscale: {run.name}", run_page(run, html.Album(out)))


def _write(out: Path, title: str, body: Iterable[str]) -> Path:
    path = out / PAGE
    path.write_text(html.page(title, body), encoding="utf-8", errors="replace")
    return path
