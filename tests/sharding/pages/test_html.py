"""The pieces that pages are made of: what they show is data, and what they load is inside them."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

import pytest

from sharding.pages.html import data_url, document, figures, image, table, text_of

EVIL = "<script>alert(\"1\" & '2')</script>\x07"
SAFE = "&lt;script&gt;alert(&quot;1&quot; &amp; &#x27;2&#x27;)&lt;/script&gt;\\x07"


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_whatever_is_shown_is_escaped() -> None:
    assert text_of(EVIL) == SAFE and text_of(7) == "7"
    pieces = [figures([(EVIL, EVIL, "main")]), table([EVIL], [[EVIL]]), image(EVIL, b"png")]
    page = Tags(document(EVIL, "", pieces))
    assert [tag for tag, _ in page.tags if tag == "script"] == []
    assert page.text.count("<script>alert(\"1\" & '2')</script>\\x07") == 5  # the title, too
    assert [values["alt"] for tag, values in page.tags if tag == "img"] == ["<script>alert(\"1\" & '2')</script>\\x07"]


def test_a_document_forbids_what_it_does_not_hold() -> None:
    page = Tags(document("a page", "p { color: red; }", ["<p>one</p>", "<p>two</p>"]))
    policy = next(values for _, values in page.tags if values.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "p { color: red; }" in page.text and "one\ntwo" in page.text


def test_a_table_has_a_cell_a_head() -> None:
    page = Tags(table(("name", "count"), [("a", 1), ("b", "2")], {1}))
    cells = [(tag, values.get("class")) for tag, values in page.tags if tag in ("th", "td")]
    assert cells == [("th", None), ("th", "number")] + 2 * [("td", None), ("td", "number")]
    assert page.text == "namecounta1b2"
    with pytest.raises(ValueError, match="longer than"):
        table(("name", "count"), [("a",)])


def test_figures_and_pictures() -> None:
    assert (
        figures([("7", "runs", "")])
        == '<div class="figures"><div class="figure "><b>7</b><span>runs</span></div></div>'
    )
    assert base64.b64decode(data_url(b"\x89PNG").removeprefix("data:image/png;base64,")) == b"\x89PNG"
