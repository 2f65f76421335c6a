"""The job `shards inspect`: what a store holds, and if wanted a contact sheet and a page of it."""

import logging
from pathlib import Path
from typing import Any

from sharding.base.user_paths import writable_folder, writing
from sharding.format.index import current_index
from sharding.inspect.summary import summary
from sharding.storage.store import open_store

log = logging.getLogger("reelscale")


def run_inspection(url: str, out: Path | None) -> dict[str, Any]:
    """The store's summary; with `out`, its `files`: contact-sheet.png and inspect.html in that folder."""
    store = open_store(url)
    figures = summary(store)
    if out is None:
        return figures
    from sharding.inspect.contact_sheet import contact_sheet
    from sharding.inspect.html import page
    from sharding.pages.fonts import INSTALL_HINT

    folder = Path(writable_folder(str(out), "--out"))
    picture = contact_sheet(store, current_index(store))
    if picture.legend:
        log.warning(
            "no installed font has the letters of %d classes' names (%s): the contact sheet shows their numbers, and "
            "the page the names; %s", len(picture.legend), ascii(next(iter(picture.legend.values()))), INSTALL_HINT,
        )  # fmt: skip
    sheet, html = folder / "contact-sheet.png", folder / "inspect.html"
    with writing(folder, "--out"):
        folder.mkdir(parents=True, exist_ok=True)
        sheet.write_bytes(picture.png)
        html.write_text(page(figures, picture), encoding="utf-8")
    return figures | {"files": {"contact sheet": str(sheet), "page": str(html)}}
