"""A page's pictures: drawn for light and dark pages, and the light ones kept as files beside the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pretrain.report import html
from pretrain.report.drawing import DARK, LIGHT, Theme


@dataclass(frozen=True)
class Album:
    """Where the PNG files of one page go: into `folder`, their names beginning with `prefix`."""

    folder: Path
    prefix: str = ""

    def picture(self, name: str, described: str, draw: Callable[[Theme], bytes]) -> str:
        """Draw for both pages, keep the light one as a file, and give the HTML of both."""
        light = draw(LIGHT)
        (self.folder / f"{self.prefix}{name}.png").write_bytes(light)
        return html.picture(described, light, draw(DARK))
