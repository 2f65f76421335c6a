"""The pieces of a page: plain HTML and CSS in one file, with every picture inside it and everything shown escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from sharding.base.printable import visible

ImageKind = Literal["png", "jpeg"]

# The page says to the browser what it promises: nothing is fetched, nothing is run.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def text_of(value: object) -> str:
    """Escaped for elements and attributes; what would act or hide there (a control, a lone surrogate) as its code."""
    return html.escape(visible(value), quote=True)


def lines_of(value: object) -> str:
    """As `text_of`, of a text whose lines stay apart."""
    return "<br>".join(text_of(line) for line in str(value).split("\n"))


def document(title: str, style: str, body: Iterable[str]) -> str:
    """A whole HTML document with this style sheet; its body's pieces are HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text_of(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def figures(values: Iterable[tuple[object, object, str]]) -> str:
    """Headline figures; each is (value, what it is, CSS class or ""): `.figures` of `.figure`, `<b>` and `<span>`.

    What it is may have several lines.
    """
    boxes = (
        f'<div class="figure {look}"><b>{text_of(value)}</b><span>{lines_of(name)}</span></div>'
        for value, name, look in values
    )
    return f'<div class="figures">{"".join(boxes)}</div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], numbers: Collection[int] = ()) -> str:
    """A table; the cells of the columns in `numbers` are of the class `.number`. Rows are as long as the heads."""
    looks = [' class="number"' if column in numbers else "" for column in range(len(heads))]
    head = "".join(f"<th{look}>{text_of(name)}</th>" for name, look in zip(heads, looks, strict=True))
    lines = ("".join(f"<td{look}>{text_of(cell)}</td>" for cell, look in zip(row, looks, strict=True)) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def image(described: str, data: bytes, kind: ImageKind = "png") -> str:
    """A picture inside the page."""
    return f'<img alt="{text_of(described)}" src="{data_url(data, kind)}">'


def data_url(data: bytes, kind: ImageKind = "png") -> str:
    """A picture as the URL that holds it."""
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")
