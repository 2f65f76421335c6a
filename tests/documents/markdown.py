"""The repository's Markdown: its files, headings, links, code blocks, and the command lines in them."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.source_code import ROOT, relative


def _documents() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.splitlines() if listed.returncode == 0 else []
    packages = ("cluster", "pretrain", "sharding", "configs", "tests")
    every = [ROOT / name for name in names] or [
        *ROOT.glob("*.md"),
        *(p for d in packages for p in (ROOT / d).rglob("*.md")),
    ]
    return sorted(path for path in every if path.exists())


DOCUMENTS = _documents()
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STARTS = re.compile(r"(?:^|\s)(?:reelscale|-m cluster\.cli|--no_local_rank cluster\.cli)(?=\s|$)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document: its language ("" where it has none), its text, and its first line's number."""

    document: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Example:
    """A command line of a document: the words after `reelscale`, and where it stands."""

    where: str
    words: tuple[str, ...]


def blocks(document: Path) -> list[Block]:
    """All fenced blocks of a document, in order."""
    text = document.read_text("utf-8")
    return [
        Block(relative(document), text.count("\n", 0, fence.start()) + 2, fence[1], fence[2])
        for fence in _FENCE.finditer(text)
    ]


def prose(document: Path) -> str:
    """A document without its fenced blocks."""
    return _FENCE.sub("", document.read_text("utf-8"))


def headings(document: Path) -> list[str]:
    """The texts of a document's headings."""
    return re.findall(r"^#{1,6} (.+)$", prose(document), re.MULTILINE)


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def links(document: Path) -> list[str]:
    """The targets of a document's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(document))


def code_spans(document: Path) -> list[str]:
    """What stands between single backticks, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", prose(document))


def block_examples(document: Path) -> Iterator[Example]:
    """The `reelscale …` lines of a document's blocks, also where another program starts them."""
    for block in blocks(document):
        if block.language not in ("", "sh", "bash"):
            continue
        joined = re.sub(r"\\\n\s*", " ", block.text)
        for line in joined.splitlines():
            if words := command_words(line):
                yield Example(f"{block.document}: {line.strip()}", words)


def span_examples(document: Path) -> Iterator[Example]:
    """The command lines in a document's text, but those with a gap (`…`)."""
    for span in code_spans(document):
        if "…" not in span and " " in span and (words := command_words(span)):
            yield Example(f"{relative(document)}: {span}", words)


def command_words(line: str) -> tuple[str, ...]:
    """The words after `reelscale` (or `cluster.cli`) in a line of shell, up to a comment, `>` or `;`; else ()."""
    start = _STARTS.search(line)
    if start is None or line[: start.start()].lstrip().startswith(("#", "|")):
        return ()
    words: list[str] = []
    for word in shlex.split(line[start.end() :], comments=True):
        if word in (">", "|"):
            break
        words.append(word.removesuffix(";"))
        if word.endswith(";"):
            break
    return tuple(words)
