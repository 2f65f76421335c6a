"""The HTML page of a store: one file without scripts or outside resources, all that it shows escaped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sharding.inspect.contact_sheet import Sheet
from sharding.inspect.summary import concealed_words, length_words
from sharding.pages.html import document, figures, image, table, text_of

_EXAMPLES = 5  # failures shown one by one, of a kind
_ENDS = 15  # classes shown at the top and at the bottom
_ALL_NAMES = 2000  # classes named one by one
_COLOURS = ("#3b6fb6", "#e08e45", "#5a9e6f", "#8a6fb0")  # of the splits

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: #1f2933; font: 15px/1.5 system-ui, "Segoe UI", Helvetica, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 12px; }
h3 { font-size: 14px; margin: 16px 0 6px; color: #52606d; font-weight: 600; }
p { margin: 4px 0 12px; color: #52606d; overflow-wrap: anywhere; }
section { background: #fff; border: 1px solid #e4e7eb; border-radius: 10px; padding: 20px 24px; margin-top: 18px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin-top: 18px; }
.figure { background: #fff; border: 1px solid #e4e7eb; border-radius: 10px; padding: 14px 16px; }
.figure b { display: block; font-size: 21px; font-weight: 650; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.figure span { color: #7b8794; font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: #7b8794; font-weight: 500; font-size: 13px; border-bottom: 1px solid #e4e7eb; }
th, td { padding: 5px 14px 5px 0; vertical-align: top; }
td { border-bottom: 1px solid #f0f2f4; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 4px 40px; }
.bars { display: grid; grid-template-columns: minmax(90px, 230px) 1fr max-content; gap: 3px 12px; align-items: center; }
.bars .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars .count { text-align: right; color: #52606d; font-variant-numeric: tabular-nums; }
.bar { display: flex; height: 12px; background: #f0f2f4; border-radius: 3px; overflow: hidden; }
.bar i { display: block; height: 100%; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 6px 0 14px; }
.all { columns: 240px; column-gap: 32px; margin-top: 12px; font-size: 13px; }
.all div { display: flex; gap: 8px; break-inside: avoid; }
.all span { flex: 1; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.all b { font-weight: 500; color: #52606d; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; color: #3b6fb6; margin-top: 14px; }
svg, img { display: block; width: 100%; height: auto; }
img { width: auto; max-width: 100%; }
.empty { color: #b44d12; }
"""


def page(summary: Mapping[str, Any], sheet: Sheet) -> str:
    """The whole page from a store's `summary` (sharding.inspect.summary) and its contact sheet."""
    names = table(("in the picture", "class"), list(sheet.legend.items())) if sheet.legend else ""
    sections = [
        _section("Splits", _splits(summary["splits"])),
        _section("Samples", image("contact sheet: middle frames of some samples", sheet.png) + names),
        _section("Classes", _classes(summary["classes"], summary["label_histogram"])),
        _section("Length of the samples", _lengths(summary["lengths"])),
        _section("Concealed damage", _concealed(summary["concealed"], summary["frames"])),
        _section("Failures", _failures(summary["failures"], summary["failure_examples"])),
        _section("Listed and not sharded", _counts(summary["left_out"])),
        _section("Generations", _generations(summary["generations"])),
        _section("Settings", table(("setting", "value"), _leaves(summary["settings"]))),
        _section("Made with", table(("library", "version"), _leaves(summary["versions"]))),
    ]
    store = str(summary["store"])
    index = f"index {text_of(summary['index'])}" if summary["index"] else "no index yet"
    head = f"<h1>{text_of(store)}</h1><p>{index}</p>"
    return document(store, _STYLE, [head, figures(_headline(summary)), *sections])


def _headline(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A store's sums: (value, what it is, "")."""
    return [
        (f"{summary['samples']:,}", "samples", ""),
        (f"{summary['videos']:,}", "videos", ""),
        (_duration(summary["seconds"]), "of video", ""),
        (_short(summary["frames"]), "frames", ""),
        (_size(summary["bytes"]), "in the shards", ""),
        (f"{len(summary['classes']):,}", "classes", ""),
        (f"{sum(summary['failures'].values()):,}", "failures", ""),
    ]


def _splits(splits: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, split in splits.items():
        more = [f"{split['frames']:,}", _duration(split["seconds"])] if "seconds" in split else ["", ""]
        counts = [f"{split[field]:,}" for field in ("samples", "videos", "shards")]
        rows.append([name, *counts, _size(split["bytes"]), *more])
    return table(("split", "samples", "videos", "shards", "size", "frames", "length"), rows, range(1, 7))


def _classes(classes: Sequence[str], histogram: Mapping[str, Mapping[str, int]]) -> str:
    """All classes as one picture by rank, the largest, smallest and empty ones by name, then all of them."""
    by_split = {split: {int(label): n for label, n in counts.items()} for split, counts in histogram.items()}
    total: Counter[int] = Counter(dict.fromkeys(range(len(classes)), 0))
    for counts in by_split.values():
        total.update(counts)
    order = sorted(total, key=lambda label: (-total[label], label))
    filled = [label for label in order if total[label]]
    empty = [label for label in order if not total[label]]
    if not order:
        return "<p>no classes</p>"
    named = {label: classes[label] if 0 <= label < len(classes) else f"class {label}" for label in order}
    colours = {split: _COLOURS[number % len(_COLOURS)] for number, split in enumerate(by_split)}
    legend = "".join(
        f'<i class="key" style="background:{colour}"></i>{text_of(split)}' for split, colour in colours.items()
    )
    labels = sum(total.values())
    counted = f"{labels:,} labels on {len(filled):,} of {len(order):,} classes"
    if filled:
        counted += f"; from {total[filled[-1]]:,} to {total[filled[0]]:,} a class"
    parts = [f"<p>{counted}; a sample with several labels counts in each. {legend}</p>"]
    if len(filled) > 2 * _ENDS:
        parts.append(_ranks([(named[label], total[label]) for label in filled]))
    bars = {label: [(by_split[split].get(label, 0), colours[split]) for split in by_split] for label in order}
    most = total[order[0]]
    if len(filled) > 2 * _ENDS:
        ends = {"Most samples": filled[:_ENDS], "Fewest samples": filled[-_ENDS:]}
        halves = (
            f"<div><h3>{title}</h3>{_bars([(named[x], bars[x]) for x in shown], most)}</div>"
            for title, shown in ends.items()
        )
        parts.append(f'<div class="two">{"".join(halves)}</div>')
        listed = "".join(
            f'<div><span title="{text_of(named[x])}">{text_of(named[x])}</span><b>{total[x]:,}</b></div>'
            for x in filled[:_ALL_NAMES]
        )
        rest = f" (the {_ALL_NAMES:,} largest)" if len(filled) > _ALL_NAMES else ""
        parts.append(f'<details><summary>All classes{rest}</summary><div class="all">{listed}</div></details>')
    else:
        parts.append(_bars([(named[x], bars[x]) for x in filled], most))
    if empty:
        names = ", ".join(text_of(named[label]) for label in empty[:_ALL_NAMES])
        parts.append(f'<h3 class="empty">{len(empty):,} classes without a sample</h3><p>{names}</p>')
    return "".join(parts)


def _ranks(counts: Sequence[tuple[str, int]]) -> str:
    """Samples a class, the largest first: a bar each."""
    most, step = max(count for _, count in counts), 1000 / len(counts)
    gap = 0.15 if len(counts) <= 500 else 0.0
    bars = "".join(
        f'<rect x="{number * step:.2f}" y="{170 - 160 * count / most:.2f}" width="{step * (1 - gap):.2f}" '
        f'height="{160 * count / most:.2f}"><title>{text_of(name)}: {count:,}</title></rect>'
        for number, (name, count) in enumerate(counts)
    )
    heights = [(170 - 160 * share, round(most * share)) for share in (0.5, 1.0)]
    lines = "".join(f'<line x1="0" x2="1000" y1="{y:.1f}" y2="{y:.1f}"/>' for y, _ in heights)
    words = "".join(f'<text x="1000" y="{y - 3:.1f}" text-anchor="end">{count:,}</text>' for y, count in heights)
    return (
        '<svg viewBox="0 -6 1000 196" role="img" aria-label="samples a class, by rank">'
        f'<g stroke="#d5dae0" stroke-width="0.6">{lines}</g><g fill="{_COLOURS[0]}">{bars}</g>'
        f'<g fill="#7b8794" font-size="11">{words}<text x="0" y="185">1st by samples</text>'
        f'<text x="1000" y="185" text-anchor="end">{len(counts):,}th</text></g></svg>'
    )


def _lengths(lengths: Sequence[Mapping[str, Any]]) -> str:
    if not lengths:
        return "<p>no samples</p>"
    shown = [(length_words(bucket), [(bucket["samples"], _COLOURS[0])]) for bucket in lengths]
    return _bars(shown, max(bucket["samples"] for bucket in lengths))


def _concealed(concealed: Mapping[str, int], frames: int) -> str:
    words = concealed_words(concealed, frames) or "none: no stored frame shows damage that a decoder concealed"
    return f"<p>{text_of(words)}</p>"


def _failures(kinds: Mapping[str, int], examples: Iterable[Mapping[str, Any]]) -> str:
    if not kinds:
        return "<p>none: every listed video gave its samples</p>"
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    parts = [_bars([(kind, [(count, "#c4694f")]) for kind, count in ordered], ordered[0][1])]
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for example in examples:
        shown = by_kind.setdefault(str(example["kind"]), [])
        if len(shown) < _EXAMPLES:
            shown.append(example)
    for kind, count in ordered:
        some = by_kind.get(kind, [])
        rows = [[example.get(field, "") for field in ("uri", "split", "reason")] for example in some]
        if rows:
            first = f", the first {len(rows)}" if count > len(rows) else ""
            parts.append(f"<h3>{text_of(kind)}: {count:,}{first}</h3>{table(('video', 'split', 'reason'), rows)}")
    return "".join(parts)


def _generations(generations: Iterable[Mapping[str, Any]]) -> str:
    rows = [[one["number"], one["kind"], f"{one['videos']:,}"] for one in generations]
    return table(("generation", "kind", "videos"), rows, (2,))


def _counts(kinds: Mapping[str, int]) -> str:
    rows = [[kind, f"{count:,}"] for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))]
    return table(("kind", "listed"), rows, (1,)) if rows else "<p>nothing</p>"


def _leaves(tree: Any, path: str | None = None) -> list[list[str]]:
    """[path, value] of every leaf of a JSON tree."""
    if isinstance(tree, Mapping) and (tree or path is None):
        return [leaf for key in tree for leaf in _leaves(tree[key], str(key) if path is None else f"{path}.{key}")]
    if isinstance(tree, list):
        shown = ", ".join(item if isinstance(item, str) else json.dumps(item) for item in tree)
    else:
        shown = tree if isinstance(tree, str) else json.dumps(tree)
    return [[path or "", shown]]


def _bars(rows: Sequence[tuple[str, Sequence[tuple[int, str]]]], most: int) -> str:
    """A line a row: name, a bar of coloured pieces, their sum."""
    lines = []
    for name, pieces in rows:
        bar = "".join(
            f'<i style="width:{100 * count / max(most, 1):.2f}%;background:{colour}"></i>' for count, colour in pieces
        )
        total = sum(count for count, _ in pieces)
        shown = text_of(name)
        lines.append(
            f'<span class="name" title="{shown}">{shown}</span><span class="bar">{bar}</span>'
            f'<span class="count">{total:,}</span>'
        )
    return f'<div class="bars">{"".join(lines)}</div>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    if seconds < 36000:
        return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60} min"
    return f"{round(seconds / 3600):,} h"


def _short(count: int) -> str:
    return f"{count:,}" if count < 10**7 else f"{count / 10**6:,.0f} million"
