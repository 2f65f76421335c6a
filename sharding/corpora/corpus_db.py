"""A corpus' rows, in a temporary SQLite file: joined with the files there are, each video once, in the plan's order."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sharding.base.errors import UserError
from sharding.base.text import nfc
from sharding.corpora.entries.labels import LabelEncoder
from sharding.corpora.entries.roots import is_video_name, printable, sanitised
from sharding.corpora.entries.rows import CorpusList, IdsOfPath, Refusal, Row, decode_name, encode_name
from sharding.corpora.entries.splits import ValidationShare
from sharding.corpora.file_resolver import FileResolver
from sharding.corpora.merge import UNKNOWN, merged_videos

_TABLES = """
CREATE TABLE files (root INT, uri BLOB, bytes INT, video INT, key BLOB, alias BLOB);
CREATE TABLE listed (source BLOB, split TEXT, key BLOB, whole BLOB, start REAL, end REAL, labels TEXT, bytes INT,
                     loose BLOB, file INT, line INT);
CREATE TABLE media (key BLOB PRIMARY KEY, uri BLOB, bytes INT, copies INT) WITHOUT ROWID;
CREATE TABLE forms (key BLOB PRIMARY KEY, uri BLOB) WITHOUT ROWID;
CREATE TABLE refused (uri BLOB, kind TEXT, reason TEXT, file INT, line INT);
CREATE TABLE videos (split TEXT, ord BLOB, uri BLOB, start REAL, end REAL, labels TEXT, bytes INT, file INT, line INT,
                     source BLOB);
"""
CACHE = 192 * 2**20  # bytes of SQLite's page cache, and of what it sorts in memory
_BATCH = 10_000  # refusals kept back, so that they are written many at a time


class CorpusDatabase:
    """A temporary database: `look`, then `read` every list, `match`, `settle`; then its tables are read.

    Nothing of it is held in memory but SQLite's page cache; the file has no name and goes with the process.
    Every method raises UserError if the disk for temporary files is full.
    """

    def __init__(self) -> None:
        self.db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size={-CACHE // 1024}", "temp_store=FILE"):
            self.db.execute(f"PRAGMA {pragma}")
        self.db.executescript(_TABLES)
        self.db.execute("BEGIN")  # one transaction for good: nothing is ever taken back
        self.lists: list[tuple[str, str]] = []
        self.rows = 0
        self.of_folders = False
        self.given: Counter[str] = Counter()  # rows by the split that they give
        self._looked: dict[int, str] = {}
        self._waiting: list[tuple[bytes, str, str, int, int]] = []

    def close(self) -> None:
        """Give the disk space back."""
        self.db.close()

    def look(self, root: str, files: Iterable[tuple[str, int | None]], ids: IdsOfPath | None = None) -> int:
        """Keep a root's listing, with the `ids` to match by if these are known; returns the number that it has here."""
        for number, seen in self._looked.items():
            if seen == root:
                return number
        number = len(self._looked)

        def rows() -> Iterator[tuple[Any, ...]]:
            for uri, size in files:
                video = is_video_name(uri)
                known = _ids(ids, uri) if video and ids is not None else (None, None)
                yield number, encode_name(uri), size, video, *known

        with told():
            self.db.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", rows())
        self._looked[number] = root
        return number

    def files(self, root: int, video: bool) -> Iterator[tuple[str, int | None]]:
        """(path, bytes) of a root's files that are videos by their name, or are not; by name."""
        found = self.db.execute("SELECT uri, bytes FROM files WHERE root=? AND video=? ORDER BY uri", (root, video))
        return ((decode_name(uri), size) for uri, size in found)

    def count_files(self, root: int, video: bool) -> int:
        """How many such files there are."""
        return int(self._one("SELECT COUNT(*) FROM files WHERE root=? AND video=?", root, video))

    def read(self, listing: CorpusList, book: LabelEncoder, finder: FileResolver | None, listed: bool = False) -> None:
        """Take in a list. `finder`: its names are paths, which it finds; None: they are ids.

        `listed`: its rows come from a listing of files, so that these are known to be there.
        """
        file = len(self.lists)
        self.lists.append((listing.where, listing.unit))

        def accepted() -> Iterator[tuple[Any, ...]]:
            for row in listing.rows:
                self.rows += 1
                found = row if isinstance(row, Refusal) else _values(row, book, finder, listed)
                if isinstance(found, Refusal):
                    self.refuse(file, found)
                else:
                    self.given[row.split] += 1  # type: ignore[union-attr]
                    yield (*found, file, row.line)

        with told():
            self.db.executemany("INSERT INTO listed VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", accepted())

    def match(self, root: int, ids: IdsOfPath) -> None:
        """Say by what ids rows mean the videos of a root: of several of one id, the first by name is taken.

        A file's second id, its alias, counts less than another's first.
        """
        self.db.create_function("file_key", 1, lambda uri: _ids(ids, decode_name(uri))[0], deterministic=True)
        self.db.create_function("file_alias", 1, lambda uri: _ids(ids, decode_name(uri))[1], deterministic=True)
        unknown = "UPDATE files SET key=file_key(uri), alias=file_alias(uri) WHERE root=? AND video AND key IS NULL"
        first = "INSERT INTO media SELECT key, MIN(uri), bytes, COUNT(*) FROM files WHERE root=? AND video GROUP BY key"
        second = """INSERT INTO media SELECT alias, MIN(uri), bytes, COUNT(*) FROM files
                    WHERE root=? AND video AND alias IS NOT NULL GROUP BY alias
                    ON CONFLICT (key) DO UPDATE SET copies=copies + excluded.copies"""
        with told():
            for query in (unknown, first, second):
                self.db.execute(query, (root,))

    def match_uris(self, root: int, uri: Callable[[str], str]) -> None:
        """Say that rows mean the files of a root by uri, whatever they are called."""
        rows = ((encode_name(uri(decode_name(path))), size) for path, size in self._paths(root))
        with told():
            self.db.executemany("INSERT OR IGNORE INTO media VALUES (?1, ?1, ?2, 1)", rows)
            others = ((encode_name(form), encode_name(name)) for name, form in self._forms(root, uri) if form != name)
            keep = "INSERT INTO forms VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET uri=MIN(uri, excluded.uri)"
            self.db.executemany(keep, others)

    def match_loosely(self) -> None:
        """Let rows that mean no file of a store exactly mean it in another Unicode form, or without blanks."""
        exact = "(SELECT uri FROM media WHERE media.key=listed.{})"
        form = "(SELECT uri FROM forms WHERE forms.key=listed.loose)"
        with told():
            self.db.execute(
                f"""UPDATE listed SET key=COALESCE({exact.format("key")}, {exact.format("loose")}, {form}, loose)
                    WHERE loose IS NOT NULL"""
            )
            self.db.execute("UPDATE listed SET source=key WHERE loose IS NOT NULL")

    def settle(self, book: LabelEncoder, validation: float, absent: str) -> None:
        """Rows → `videos`, each once and on one side only, in order; what is left out → `refused`.

        `absent`: in words, where a missing video was looked for.
        """
        shares = ValidationShare(validation)
        split = "share(source)"
        if not self.by_share:
            test = "test" if self.given["val"] else "val"
            split = f"CASE split WHEN 'test' THEN '{test}' WHEN '' THEN share(source) ELSE split END"
        self.db.create_function("share", 1, shares.side, deterministic=True)
        with told():
            self.db.execute(
                f"""CREATE TABLE sorted AS SELECT source, {split} AS split, key, whole, start, end, labels, bytes,
                    file, line FROM listed ORDER BY source, split, key, start, end, file, line"""
            )
            self.db.execute("DROP TABLE listed")
            rows = self.db.execute(
                """SELECT s.source, s.split, s.key, s.whole, s.start, s.end, s.labels, s.bytes, s.file, s.line,
                          m.uri, m.bytes, m.copies, w.uri, w.bytes, w.copies
                   FROM sorted s LEFT JOIN media m ON m.key=s.key LEFT JOIN media w ON w.key=s.whole ORDER BY s.rowid"""
            )
            settled = merged_videos(rows, book, shares if self.by_share else None, absent, self.refuse, self.place)
            self.db.executemany("INSERT INTO videos VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", settled)
            self.db.execute("DROP TABLE sorted")
            self.db.execute("DROP TABLE media")
            crossing = shares.crossing() if self.by_share else None
            if crossing is not None:
                self.db.execute("UPDATE videos SET split=? WHERE source=?", (crossing[1], crossing[0]))
        self.reorder()

    @property
    def by_share(self) -> bool:
        """Whether the corpus gives no split, so that a share of its videos is for validation.

        A folder train/ alone gives none: it may be the whole of what somebody has. A list that says train does.
        """
        return not self.given["val"] and not self.given["test"] and (self.of_folders or not self.given["train"])

    def reorder(self) -> None:
        """Bring `videos` into the plan's order."""
        with told():
            self.db.execute("CREATE TABLE planned AS SELECT * FROM videos ORDER BY split, ord, uri, start, end")
            self.db.execute("DROP TABLE videos")
            self.db.execute("ALTER TABLE planned RENAME TO videos")

    def refuse(self, file: int, refusal: Refusal) -> None:
        """Keep what is left out of a list."""
        reason = printable(refusal.reason)
        self._waiting.append((encode_name(printable(refusal.name)), refusal.kind, reason, file, refusal.line))
        if len(self._waiting) >= _BATCH:
            self._write_refusals()

    def refusals(self) -> Iterator[tuple[str, str, str, int, int]]:
        """(name, kind, reason, number of the list, line) of all that was left out or remarked on, as listed."""
        self._write_refusals()
        found = self.db.execute("SELECT uri, kind, reason, file, line FROM refused ORDER BY file, line, uri, kind")
        for uri, kind, reason, file, line in found:
            yield sanitised(decode_name(uri)), kind, reason, file, line

    def examples(self, kind: str, most: int) -> Iterator[str]:
        """The first names of a kind, as they can be shown, with where they are listed."""
        query = "SELECT uri, file, line FROM refused WHERE kind=? ORDER BY file, line, uri LIMIT ?"
        for uri, file, line in self.db.execute(query, (kind, most)):
            name = sanitised(decode_name(uri))
            yield f"{name} ({self.place(file, line)})" if line else name

    def refused(self) -> dict[str, int]:
        """How many of each kind."""
        self._write_refusals()
        return dict(self.db.execute("SELECT kind, COUNT(*) FROM refused GROUP BY kind ORDER BY kind"))

    def counts(self) -> dict[str, int]:
        """Videos of each split."""
        found = dict(self.db.execute("SELECT split, COUNT(*) FROM videos GROUP BY split"))
        return {"train": found.get("train", 0), "val": found.get("val", 0)}

    def place(self, file: int, line: int) -> str:
        """In words, where a row is listed."""
        where, unit = self.lists[file]
        return f"{where}, {unit} {line}" if line else where

    def label_counts(self) -> dict[str, Counter[int]]:
        """Videos of each class, by split."""
        found: dict[str, Counter[int]] = {"train": Counter(), "val": Counter()}
        for split, labels, count in self.db.execute(
            "SELECT split, labels, COUNT(*) FROM videos GROUP BY split, labels"
        ):
            for label in labels.split(","):
                found[split][int(label)] += count
        return found

    def _forms(self, root: int, uri: Callable[[str], str]) -> Iterator[tuple[str, str]]:
        """(uri, its composed form) of a root's files."""
        for path, _ in self._paths(root):
            name = uri(decode_name(path))
            yield name, nfc(name)

    def _paths(self, root: int) -> Iterator[tuple[bytes, int | None]]:
        yield from self.db.execute("SELECT uri, bytes FROM files WHERE root=?", (root,))

    def _write_refusals(self) -> None:
        waiting, self._waiting = self._waiting, []
        with told():
            self.db.executemany("INSERT INTO refused VALUES (?, ?, ?, ?, ?)", waiting)

    def _one(self, query: str, *values: object) -> Any:
        return self.db.execute(query, values).fetchone()[0]


@contextlib.contextmanager
def told() -> Iterator[None]:
    """A full disk as a UserError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" not in str(error) and "disk I/O" not in str(error):
            raise
        remedy = "free some space there, or set TMPDIR to a folder on another disk"
        what = f"the corpus' list does not fit on the disk for temporary files: {error}"
        raise UserError(what, tempfile.gettempdir(), remedy) from error


def _ids(ids: IdsOfPath, uri: str) -> tuple[bytes, bytes | None]:
    """A file's id and its alias, as they are kept."""
    first, *more = ids(uri)
    return encode_name(nfc(first)), encode_name(nfc(more[0])) if more else None


def _values(row: Row, book: LabelEncoder, finder: FileResolver | None, listed: bool) -> tuple[Any, ...] | Refusal:
    """Values of the table `listed` but for the last two, or why the row is refused."""
    name, labels, split, start, end, line, whole, size = row
    loose: str | None = None
    if not labels:
        return Refusal(name, "unlabelled", "it has no label", line)
    if start is not None or end is not None:
        first = start or 0.0
        if not (0 <= first < math.inf and (end is None or first < end < math.inf)):
            return Refusal(name, "malformed", f"the times {start} to {end} are not a stretch of a video", line)
    try:
        if listed:
            size = UNKNOWN if size is None else size
        elif finder is None:
            name, whole = nfc(name.strip()), nfc(whole)
        else:
            found = finder.find(name)
            if found is None:
                reason = "it does not lie below the media's folder or one of the roots"
                return Refusal(name, "outside_roots", reason, line)
            name, size, loose = found
        key = encode_name(name)
        other = encode_name(whole) if whole else None
        code = book.code(labels)
        return (
            other if other is not None and start is not None else key,
            *(split, key, other, start, end, code, size),
            None if loose is None else encode_name(loose),
        )
    except UnicodeEncodeError:
        return Refusal(printable(name), "malformed", "its name cannot be a file's: it holds half a character", line)
