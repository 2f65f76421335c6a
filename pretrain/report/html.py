"""What a report's page has beyond every page's pieces: its look on light and dark screens, cards and notes."""

from __future__ import annotations

from collections.abc import Iterable

from sharding.pages.html import document, image, png_url, text_of

STYLE = """
:root { color-scheme: light dark; --page: #f4f6f9; --card: #ffffff; --text: #24303c; --soft: #5d6b7a;
  --line: #e1e6ec; --accent: #2563eb; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1319; --card: #171c24; --text: #d5dce5;
  --soft: #94a1b0; --line: #2a323d; --accent: #6aa2ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; letter-spacing: -.02em; margin: 0 0 .2rem; }
h2 { font-size: 1.4rem; letter-spacing: -.01em; margin: 3rem 0 .2rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 0 0 .8rem; }
p { margin: .2rem 0 .8rem; } .soft { color: var(--soft); overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem;
  margin: 1.2rem 0; }
.figure, .card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.figure { padding: .9rem 1rem; } .figure b { display: block; font-size: 1.75rem; line-height: 1.2;
  letter-spacing: -.02em; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.figure.small b { font-size: .95rem; line-height: 1.5; font-weight: 600; letter-spacing: 0; }
.figure span { color: var(--soft); font-size: .85rem; }
.figure.main b { color: var(--accent); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1rem;
  align-items: start; }
.card { padding: 1.1rem 1.2rem; margin: 0 0 1rem; overflow-x: auto; } .cards .card { margin: 0; }
.cards + .card { margin-top: 1rem; }
.card img { display: block; width: 100%; height: auto; }
.note { border-left: 4px solid var(--accent); }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
pre { background: var(--page); border-radius: 8px; padding: .7rem .9rem; overflow-x: auto;
  margin: .4rem 0 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td { overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; font-weight: 600; } details[open] summary { margin-bottom: .8rem; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole report."""
    return document(title, STYLE, body)


def card(heading: str, *content: str) -> str:
    """A titled card."""
    return f'<section class="card"><h3>{text_of(heading)}</h3>{"".join(content)}</section>'


def cards(boxes: Iterable[str]) -> str:
    """Cards side by side where the window is wide."""
    return f'<div class="cards">{"".join(boxes)}</div>'


def note(text: str, command: str | None = None) -> str:
    """A card that says what is not there, and the command that makes it."""
    shown = "" if command is None else f"<pre><code>{text_of(command)}</code></pre>"
    return f'<section class="card note">{text_of(text)}{shown}</section>'


def picture(described: str, light: bytes, dark: bytes | None = None) -> str:
    """A PNG inside the page; the dark one is shown on a dark page."""
    source = ""
    if dark is not None:
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{png_url(dark)}">'
    return f"<picture>{source}{image(described, light)}</picture>"


def folded(heading: str, content: str) -> str:
    """A card that opens on a click."""
    return f'<details class="card"><summary>{text_of(heading)}</summary>{content}</details>'
