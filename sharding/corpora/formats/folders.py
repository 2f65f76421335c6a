"""Reads a folder of class folders into rows: the class is a folder's name, the split that of one above it, if any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from sharding.base.errors import UserError
from sharding.base.printable import visible
from sharding.corpora.entries.rows import Refusal, Row
from sharding.corpora.entries.splits import SPLITS
from sharding.corpora.formats.tables import RowOrRefusal

_EXAMPLES = 5  # of names in a message
Files = Callable[[], Iterable[tuple[str, int | None]]]


def folder_rows(files: Files, folder: str, where: str) -> Iterator[RowOrRefusal]:
    """Rows of the files of a folder in one of three layouts; `files` gives (path, bytes), and is called several times.

    `{train,val}/class/**/file`, `class/**/file`, or flat files, which are of one class called `folder`. Videos
    beside class folders have no class, and are refused. Raises UserError, of the corpus at `where`, where folders of
    splits lie beside others.
    """
    # A class may be called "train" (the locomotive) among others: splits only if every folder is one.
    tops: set[str] = set()
    for uri, _ in files():
        top, slash, _ = uri.partition("/")
        if slash:
            tops.add(top)
    split_above = bool(tops) and all(top.lower() in SPLITS for top in tops)
    splits = {SPLITS[top.lower()] for top in tops if top.lower() in SPLITS}
    if len(splits) > 1 and not split_above:
        others = sorted(visible(top) for top in tops if top.lower() not in SPLITS)
        what = f"beside its splits ({', '.join(sorted(splits))}) the corpus has other folders with videos: "
        more = ", …" if len(others) > _EXAMPLES else ""
        remedy = "move them out of the corpus, or give a list (CSV) of the videos with their classes and splits"
        raise UserError(f"{what}{', '.join(others[:_EXAMPLES])}{more}", where, remedy)
    # If not one lies in a class folder, all are of one class, named after the corpus.
    depth = 2 if split_above else 1
    classed = any(uri.count("/") >= depth for uri, _ in files())
    for uri, size in files():
        parts = uri.split("/", depth)
        if len(parts) < depth or (classed and len(parts) == depth):
            yield Refusal(uri, "unlabelled", "it lies beside the class folders", 0)
            continue
        name = parts[depth - 1] if classed else folder
        split = SPLITS[parts[0].lower()] if split_above else ""
        yield Row(uri, (name,), split, bytes=size)
