"""A corpus' rows in a temporary SQLite file: listed names joined with files, each video once, in the plan's order."""

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
    """A temporary database of one corpus.

    In this order: `add_files` of each root, `add_list` of each list, `match_ids` or `match_uris`, `plan_videos`; then
    the table `videos` is read. Only SQLite's page cache is in memory; the file has no name and goes with the process.
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
        self.from_class_folders = False
        self.rows_by_split: Counter[str] = Counter()  # rows by the split that they give
        self._roots: dict[int, str] = {}
        self._unwritten_refusals: list[tuple[bytes, str, str, int, int]] = []

    def close(self) -> None:
        """Delete the database and free its disk space."""
        self.db.close()

    def add_files(self, root: str, files: Iterable[tuple[str, int | None]], ids: IdsOfPath | None = None) -> int:
        """Store the listing of a root, once; returns the root's number here.

        `ids`: how lists name its videos, where that is clear already (else `match_ids` says it).
        """
        for number, stored_root in self._roots.items():
            if stored_root == root:
                return number
        number = len(self._roots)

        def rows() -> Iterator[tuple[Any, ...]]:
            for uri, size in files:
                video = is_video_name(uri)
                key_and_alias = _ids(ids, uri) if video and ids is not None else (None, None)
                yield number, encode_name(uri), size, video, *key_and_alias

        with disk_full_as_user_error():
            self.db.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", rows())
        self._roots[number] = root
        return number

    def files(self, root: int, video: bool) -> Iterator[tuple[str, int | None]]:
        """(path, bytes) of a root's files, sorted by path: those named like videos, or (`video` False) the others."""
        rows = self.db.execute("SELECT uri, bytes FROM files WHERE root=? AND video=? ORDER BY uri", (root, video))
        return ((decode_name(uri), size) for uri, size in rows)

    def count_files(self, root: int, video: bool) -> int:
        """How many files `files` would give."""
        return int(self._one("SELECT COUNT(*) FROM files WHERE root=? AND video=?", root, video))

    def add_list(
        self, corpus_list: CorpusList, encoder: LabelEncoder, resolver: FileResolver | None, from_listing: bool = False
    ) -> None:
        """Store the rows of a list; rows that cannot be used are stored as refusals.

        `resolver`: finds the files that its names mean, which are paths; None where the names are ids.
        `from_listing`: the rows come from a listing of files, so that every file exists.
        """
        list_number = len(self.lists)
        self.lists.append((corpus_list.where, corpus_list.unit))

        def accepted() -> Iterator[tuple[Any, ...]]:
            for row in corpus_list.rows:
                self.rows += 1
                values = row if isinstance(row, Refusal) else _values(row, encoder, resolver, from_listing)
                if isinstance(values, Refusal):
                    self.add_refusal(list_number, values)
                else:
                    self.rows_by_split[row.split] += 1  # type: ignore[union-attr]
                    yield (*values, list_number, row.line)

        with disk_full_as_user_error():
            self.db.executemany("INSERT INTO listed VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", accepted())

    def match_ids(self, root: int, ids: IdsOfPath) -> None:
        """Match rows with the videos of a root by id; of several files with one id, the first by name is taken.

        A file's second id, its alias, counts less than another file's first.
        """
        self.db.create_function("file_key", 1, lambda uri: _ids(ids, decode_name(uri))[0], deterministic=True)
        self.db.create_function("file_alias", 1, lambda uri: _ids(ids, decode_name(uri))[1], deterministic=True)
        unknown = "UPDATE files SET key=file_key(uri), alias=file_alias(uri) WHERE root=? AND video AND key IS NULL"
        first = "INSERT INTO media SELECT key, MIN(uri), bytes, COUNT(*) FROM files WHERE root=? AND video GROUP BY key"
        second = """INSERT INTO media SELECT alias, MIN(uri), bytes, COUNT(*) FROM files
                    WHERE root=? AND video AND alias IS NOT NULL GROUP BY alias
                    ON CONFLICT (key) DO UPDATE SET copies=copies + excluded.copies"""
        with disk_full_as_user_error():
            for query in (unknown, first, second):
                self.db.execute(query, (root,))

    def match_uris(self, root: int, uri: Callable[[str], str]) -> None:
        """Match rows with the files of a root by uri; `uri` turns a path below the root into one."""
        rows = ((encode_name(uri(decode_name(path))), size) for path, size in self._paths(root))
        with disk_full_as_user_error():
            self.db.executemany("INSERT OR IGNORE INTO media VALUES (?1, ?1, ?2, 1)", rows)
            pairs = self._composed_uris(root, uri)
            decomposed = ((encode_name(form), encode_name(name)) for name, form in pairs if form != name)
            keep = "INSERT INTO forms VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET uri=MIN(uri, excluded.uri)"
            self.db.executemany(keep, decomposed)

    def match_loosely(self) -> None:
        """Match rows with no exact file in a store by another Unicode form of the name, or without blanks around it."""
        exact = "(SELECT uri FROM media WHERE media.key=listed.{})"
        form = "(SELECT uri FROM forms WHERE forms.key=listed.loose)"
        with disk_full_as_user_error():
            self.db.execute(
                f"""UPDATE listed SET key=COALESCE({exact.format("key")}, {exact.format("loose")}, {form}, loose)
                    WHERE loose IS NOT NULL"""
            )
            self.db.execute("UPDATE listed SET source=key WHERE loose IS NOT NULL")

    def plan_videos(self, encoder: LabelEncoder, validation: float, absent: str) -> None:
        """Fill the table `videos` from the rows: each video once, in one split, in order; the rest becomes refusals.

        `validation`: share of the videos for validation where lists give no split. `absent`: the reason stored for a
        video without a file.
        """
        shares = ValidationShare(validation)
        split = "share(source)"
        if not self.splits_by_share:
            test = "test" if self.rows_by_split["val"] else "val"
            split = f"CASE split WHEN 'test' THEN '{test}' WHEN '' THEN share(source) ELSE split END"
        self.db.create_function("share", 1, shares.split_of, deterministic=True)
        with disk_full_as_user_error():
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
            observed = shares if self.splits_by_share else None
            videos = merged_videos(rows, encoder, observed, absent, self.add_refusal, self.listed_at)
            self.db.executemany("INSERT INTO videos VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", videos)
            self.db.execute("DROP TABLE sorted")
            self.db.execute("DROP TABLE media")
            move = shares.source_to_move() if self.splits_by_share else None
            if move is not None:
                self.db.execute("UPDATE videos SET split=? WHERE source=?", (move[1], move[0]))
        self.sort_videos()

    @property
    def splits_by_share(self) -> bool:
        """Whether the corpus gives no split, so that a share of its videos is taken for validation.

        A folder train/ alone gives none: it may be the whole of what somebody has. A list that says train does.
        """
        if self.rows_by_split["val"] or self.rows_by_split["test"]:
            return False
        return self.from_class_folders or not self.rows_by_split["train"]

    def sort_videos(self) -> None:
        """Sort the table `videos` into the plan's order."""
        with disk_full_as_user_error():
            self.db.execute("CREATE TABLE planned AS SELECT * FROM videos ORDER BY split, ord, uri, start, end")
            self.db.execute("DROP TABLE videos")
            self.db.execute("ALTER TABLE planned RENAME TO videos")

    def add_refusal(self, list_number: int, refusal: Refusal) -> None:
        """Store an entry of a list that is left out, or planned with a remark."""
        name, reason = encode_name(printable(refusal.name)), printable(refusal.reason)
        self._unwritten_refusals.append((name, refusal.kind, reason, list_number, refusal.line))
        if len(self._unwritten_refusals) >= _BATCH:
            self._write_refusals()

    def refusals(self) -> Iterator[tuple[str, str, str, int, int]]:
        """(name, kind, reason, number of the list, line) of every refusal, in the order of the lists."""
        self._write_refusals()
        rows = self.db.execute("SELECT uri, kind, reason, file, line FROM refused ORDER BY file, line, uri, kind")
        for uri, kind, reason, file, line in rows:
            yield sanitised(decode_name(uri)), kind, reason, file, line

    def examples(self, kind: str, most: int) -> Iterator[str]:
        """The first `most` names refused for a reason of this kind, each with its place in the list."""
        query = "SELECT uri, file, line FROM refused WHERE kind=? ORDER BY file, line, uri LIMIT ?"
        for uri, file, line in self.db.execute(query, (kind, most)):
            name = sanitised(decode_name(uri))
            yield f"{name} ({self.listed_at(file, line)})" if line else name

    def refusal_counts(self) -> dict[str, int]:
        """How many refusals there are of each kind."""
        self._write_refusals()
        return dict(self.db.execute("SELECT kind, COUNT(*) FROM refused GROUP BY kind ORDER BY kind"))

    def video_counts(self) -> dict[str, int]:
        """How many videos each split has."""
        counts = dict(self.db.execute("SELECT split, COUNT(*) FROM videos GROUP BY split"))
        return {"train": counts.get("train", 0), "val": counts.get("val", 0)}

    def listed_at(self, list_number: int, line: int) -> str:
        """Where a row stands, for messages: "/data/list.csv, line 7"."""
        where, unit = self.lists[list_number]
        return f"{where}, {unit} {line}" if line else where

    def label_counts(self) -> dict[str, Counter[int]]:
        """How many videos each class has, by split."""
        counts: dict[str, Counter[int]] = {"train": Counter(), "val": Counter()}
        for split, labels, count in self.db.execute(
            "SELECT split, labels, COUNT(*) FROM videos GROUP BY split, labels"
        ):
            for label in labels.split(","):
                counts[split][int(label)] += count
        return counts

    def _composed_uris(self, root: int, uri: Callable[[str], str]) -> Iterator[tuple[str, str]]:
        """(uri, its composed Unicode form) of a root's files."""
        for path, _ in self._paths(root):
            name = uri(decode_name(path))
            yield name, nfc(name)

    def _paths(self, root: int) -> Iterator[tuple[bytes, int | None]]:
        yield from self.db.execute("SELECT uri, bytes FROM files WHERE root=?", (root,))

    def _write_refusals(self) -> None:
        waiting, self._unwritten_refusals = self._unwritten_refusals, []
        with disk_full_as_user_error():
            self.db.executemany("INSERT INTO refused VALUES (?, ?, ?, ?, ?)", waiting)

    def _one(self, query: str, *values: object) -> Any:
        return self.db.execute(query, values).fetchone()[0]


@contextlib.contextmanager
def disk_full_as_user_error() -> Iterator[None]:
    """Raise UserError where SQLite finds the disk for temporary files full, inside the `with`."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" not in str(error) and "disk I/O" not in str(error):
            raise
        remedy = "free some space there, or set TMPDIR to a folder on another disk"
        what = f"the corpus' list does not fit on the disk for temporary files: {error}"
        raise UserError(what, tempfile.gettempdir(), remedy) from error


def _ids(ids: IdsOfPath, uri: str) -> tuple[bytes, bytes | None]:
    """The id of a file and its alias, as the database stores them."""
    first, *more = ids(uri)
    return encode_name(nfc(first)), encode_name(nfc(more[0])) if more else None


def _values(
    row: Row, encoder: LabelEncoder, resolver: FileResolver | None, from_listing: bool
) -> tuple[Any, ...] | Refusal:
    """The row's values for the table `listed`, without the last two columns; a Refusal if it cannot be used."""
    name, labels, split, start, end, line, fallback_id, size = row
    loose: str | None = None
    if not labels:
        return Refusal(name, "unlabelled", "it has no label", line)
    if start is not None or end is not None:
        first = start or 0.0
        if not (0 <= first < math.inf and (end is None or first < end < math.inf)):
            return Refusal(name, "malformed", f"the times {start} to {end} are not a stretch of a video", line)
    try:
        if from_listing:
            size = UNKNOWN if size is None else size
        elif resolver is None:
            name, fallback_id = nfc(name.strip()), nfc(fallback_id)
        else:
            resolved = resolver.resolve(name)
            if resolved is None:
                reason = "it does not lie below the media's folder or one of the roots"
                return Refusal(name, "outside_roots", reason, line)
            name, size, loose = resolved
        key = encode_name(name)
        fallback_key = encode_name(fallback_id) if fallback_id else None
        code = encoder.encode(labels)
        return (
            fallback_key if fallback_key is not None and start is not None else key,
            *(split, key, fallback_key, start, end, code, size),
            None if loose is None else encode_name(loose),
        )
    except UnicodeEncodeError:
        return Refusal(printable(name), "malformed", "its name cannot be a file's: it holds half a character", line)
