"""What a report's page has beyond every page's pieces: its look on light and dark screens, cards, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.report.drawing import DARK, LIGHT, Theme
from sharding.pages.html import data_url, document, image, table, text_of

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
  margin: 1.2rem 0 1rem; }
.figure, .card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.figure { padding: .8rem 1rem; } .figure b { display: block; font-size: 1.75rem; line-height: 1.2;
  letter-spacing: -.02em; font-variant-numeric: tabular-nums; white-space: nowrap; }
.figure.small b { font-size: 1.15rem; line-height: 1.4; font-weight: 600; letter-spacing: 0; }
.figure span { display: block; color: var(--soft); font-size: .85rem; line-height: 1.45; }
.figure.main b { color: var(--accent); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1rem;
  align-items: start; }
.columns { columns: 2 440px; column-gap: 1rem; } .columns .card { break-inside: avoid; }
.cards + .columns { margin-top: 1rem; }
.columns + .card, .columns + details { margin-top: 1rem; }
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
th { color: var(--soft); font-weight: 600; } td { overflow-wrap: break-word; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap;
  overflow-wrap: normal; }
td, th { min-width: 4.5rem; } td.number, th.number { min-width: 0; }
.facts td:first-child { color: var(--soft); white-space: nowrap; width: 1%; padding-right: 1.4rem; }
.facts td { font-size: .9rem; }
.settings td { overflow-wrap: anywhere; } .settings td:first-child { min-width: 13rem; }
h4 { font-size: .92rem; margin: 1.1rem 0 .3rem; color: var(--soft); }
.strips { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr));
  gap: .9rem 1.1rem; }
.strips figure { margin: 0; min-width: 0; } .strips img { border-radius: 6px; }
.strips figcaption { font-size: .88rem; overflow-wrap: anywhere; margin-bottom: .2rem; }
.wrong b { color: #d9534f; } .right b { color: #2f9e5f; }
nav { margin: .4rem 0 1.2rem; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
a { color: var(--accent); overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; } details[open] > summary { margin-bottom: .8rem; }
.part { margin-top: .9rem; }
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


def columns(boxes: Iterable[str]) -> str:
    """Cards of any height in two columns where the window is wide, down the first one and then the second."""
    return f'<div class="columns">{"".join(boxes)}</div>'


def note(text: str, command: str | None = None) -> str:
    """A card that says what is not there, and the command that makes it."""
    shown = "" if command is None else f"<pre><code>{text_of(command)}</code></pre>"
    return f'<section class="card note">{text_of(text)}{shown}</section>'


def picture(described: str, light: bytes, dark: bytes | None = None) -> str:
    """A PNG inside the page; the dark one is shown on a dark page."""
    source = ""
    if dark is not None:
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{data_url(dark)}">'
    return f"<picture>{source}{image(described, light)}</picture>"


def strip(jpeg: bytes, truth: str, taken: str, right: bool, score: str) -> str:
    """A clip's frames below its class, what it was taken for, and the score."""
    names = f"<bdi>{text_of(truth)}</bdi>" + ("" if right else f" → <bdi>{text_of(taken)}</bdi>")
    look, mark = ("right", "✓") if right else ("wrong", "✗")
    caption = f"<figcaption><b>{mark}</b> {names} <b>{text_of(score)}</b></figcaption>"
    described = f"frames of a clip of {truth}, taken for {taken}"
    return f'<figure class="{look}">{caption}{image(described, jpeg, "jpeg")}</figure>'


def strips(shown: Iterable[str]) -> str:
    """Clips in columns, as many as the window is wide for."""
    return f'<div class="strips">{"".join(shown)}</div>'


def facts(rows: Iterable[tuple[str, object]]) -> str:
    """A small table of names and values, which may be long paths: these are broken after a slash."""
    lines = (
        f"<tr><td>{text_of(name)}</td><td>{text_of(value).replace('/', '/<wbr>')}</td></tr>" for name, value in rows
    )
    return f'<table class="facts"><tbody>{"".join(lines)}</tbody></table>'


def settings_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of settings, whose values may be long."""
    return f'<div class="settings">{table(heads, rows)}</div>'


def soft(text: str) -> str:
    """A paragraph that explains."""
    return f'<p class="soft">{text_of(text)}</p>'


def folded(heading: str, *content: str) -> str:
    """A card that opens on a click."""
    return f'<details class="card"><summary>{text_of(heading)}</summary>{"".join(content)}</details>'


def folded_part(heading: str, *content: str) -> str:
    """A part of a card that opens on a click."""
    return f'<details class="part"><summary>{text_of(heading)}</summary>{"".join(content)}</details>'


@dataclass(frozen=True)
class Album:
    """Where the PNG files of one page go: into `folder`, their names beginning with `prefix`."""

    folder: Path
    prefix: str = ""

    def picture(self, name: str, described: str, draw: Callable[[Theme], bytes]) -> str:
        """Draw for both pages, keep the light one as a file, and give the HTML of both."""
        light = draw(LIGHT)
        (self.folder / f"{self.prefix}{name}.png").write_bytes(light)
        return picture(described, light, draw(DARK))
