"""What documents and messages refer to is there: headings, files, functions, make's targets, modules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documents.markdown import DOCUMENTS, anchor, blocks, code_spans, headings, links, prose
from tests.support.source_code import MODULES, ROOT, TEST_FILES, relative

NAMED = re.compile(r"\(([\w/]*\w\.md): ([^()\n\"]+)\)")  # of a heading, in text and in messages: (README.md: Why)
FILE = re.compile(r"^[\w./-]+\.(py|md|yaml|toml|png)$")
ALL_FILES = {relative(path): path for path in [*MODULES, *TEST_FILES]}
PLACEHOLDERS = re.compile(r"(^|/)(name|NAME[\w-]*)\.\w+$")
READERS = {  # what a reader's own files are called in examples
    "shard.yaml", "pretrain.yaml", "ucf.yaml", "hmdb.yaml", "mine.yaml", "recipe.yaml", "FILE.yaml", "PIPELINE.yaml",
}  # fmt: skip
IN_CODE = re.compile(r"`([\w./-]+\.py)`(?:: |, )((?:`[A-Za-z_][\w.]*`(?:, | and )?)+)")


def resolved(name: str, document: Path) -> list[Path]:
    """The files that a name in a document may mean: from the top, from its folder, or by the end of their paths."""
    package = document.parent
    exact = [path for path in (ROOT / name, package / name) if path.exists()]
    return exact or [path for place, path in ALL_FILES.items() if place.endswith(f"/{name}")]


def test_anchors_are_githubs() -> None:
    assert anchor("Where is …?") == "where-is-"
    assert anchor("Pretrain, fine-tune, evaluate") == "pretrain-fine-tune-evaluate"
    assert anchor("`commands/` – arguments in") == "commands--arguments-in"


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(document: Path) -> None:
    dead = []
    for link in links(document):
        if link.startswith(("http://", "https://")):
            continue
        name, _, wanted = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (wanted and [*map(anchor, headings(target))].count(wanted) != 1):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize(
    "name", ["cluster/README.md", "configs/SETTINGS.md", "pretrain/README.md", "sharding/README.md"]
)
def test_a_table_of_contents_names_every_part(name: str) -> None:
    document = ROOT / name
    wanted = re.findall(r"^## (.+)$", prose(document), re.MULTILINE)
    assert [heading for heading in wanted if f"#{anchor(heading)}" not in links(document)] == []


def test_headings_named_in_messages_and_texts_are_there() -> None:
    texts = {relative(path): path.read_text("utf-8") for path in [*MODULES, *DOCUMENTS]}
    references = [(where, *hit) for where, text in texts.items() for hit in NAMED.findall(text)]
    assert len(references) > 0
    missing = [
        reference
        for reference in references
        if not (ROOT / reference[1]).exists() or reference[2] not in headings(ROOT / reference[1])
    ]
    assert missing == []
    assert [where for where, text in texts.items() if re.search(r"\bREADME: ", text)] == []  # which of them?


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_files_named_are_there(document: Path) -> None:
    names = {span for span in code_spans(document) if FILE.match(span) and not PLACEHOLDERS.search(span)} - READERS
    assert {name for name in names if not resolved(name, document)} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_names_said_to_be_in_a_file_are_in_it(document: Path) -> None:
    missing = []
    for file, list_of_names in IN_CODE.findall(prose(document)):
        texts = [path.read_text("utf-8") for path in resolved(file, document)]
        for name in re.findall(r"`([^`]+)`", list_of_names):
            if name.endswith(".py"):
                break
            last = name.rpartition(".")[2]
            if not any(re.search(rf"\b{re.escape(last)}\b", text) for text in texts):
                missing.append((file, name))
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_make_has_the_targets(document: Path) -> None:
    targets = {*re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)}
    code = [*code_spans(document), *(line for block in blocks(document) for line in block.text.splitlines())]
    named = {target for text in code for target in re.findall(r"^(?:\w+=\S+ )*make ([a-z-]+)", text)}
    assert named <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_modules_and_their_options_are_there(document: Path) -> None:
    code = [*code_spans(document), *(line for block in blocks(document) for line in block.text.splitlines())]
    for text in code:
        for module, options in re.findall(r"python -m (tests[\w.]*)((?: --?[\w-]+(?: [\w.]+)?)*)", text):
            place = ROOT / module.replace(".", "/")
            files = [place.with_suffix(".py")] if place.with_suffix(".py").exists() else [*place.rglob("*.py")]
            assert files, text
            source = "\n".join(path.read_text("utf-8") for path in files)
            assert [option for option in re.findall(r"--[\w-]+", options) if f'"{option}"' not in source] == [], text
