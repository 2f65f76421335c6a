"""A corpus, whatever its form → `Video` records: each once, on one side, in the plan's order, streamed from disk."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sharding.base.errors import UserError
from sharding.corpora.corpus_db import CorpusDatabase, told
from sharding.corpora.entries.labels import LabelEncoder
from sharding.corpora.entries.roots import (
    Roots,
    file_or_folder,
    files_below,
    is_video_name,
    normalised_root,
    printable,
    sanitised,
    shared_stores,
)
from sharding.corpora.entries.rows import CorpusList, Refusal, decode_name, encode_name
from sharding.corpora.entries.settings import CorpusSettings
from sharding.corpora.file_resolver import FileResolver
from sharding.corpora.formats.folders import folder_rows
from sharding.corpora.formats.listed_corpus import ListedCorpus, class_names
from sharding.corpora.merge import identity_digest
from sharding.corpora.notes import EXAMPLES, PLANNED, coverage_notes, difference, label_notes, left_out_notes
from sharding.corpora.recognise import LOOKED_FOR, MOST_LISTS, is_list_name, recognise_folder, recognise_list
from sharding.media.input.source import local_root

__all__ = ["CorpusSettings", "Manifest", "PlanComparison", "Video", "is_video_name", "printable", "read_manifest"]

Files = Callable[[str], Iterable[tuple[str, int | None]]]


@dataclass(frozen=True, slots=True)
class Video:
    """One source video, or a stretch of one: its posix path relative to the corpus' root (or a full URL, or an
    absolute path), its class indices, its split.

    `start`, `end`: the stretch that the corpus lists, in seconds; None: from the beginning, to the end. `bytes`: its
    size where the corpus' listing tells it. `segments`: the numbers of the only segments to make; () for all.
    """

    uri: str
    labels: tuple[int, ...]
    split: str
    start: float | None = None
    end: float | None = None
    bytes: int | None = None
    segments: tuple[int, ...] = ()


@dataclass(frozen=True)
class PlanComparison:
    """A corpus beside what was planned of it: videos that are the `same`; `changed` (other labels, split or bytes:
    they stay as they were planned), with up to five `examples`; `gone`: planned, and not in this corpus."""

    same: int
    changed: int
    gone: int
    examples: tuple[str, ...]


class Manifest:
    """A corpus as read, in a temporary file: a context manager, which gives the disk space back.

    `root`: the folder or store that its uris are relative to. `classes`: their names. `notes`: in words, what was left
    out and what will be missed. `counts`: videos by split. `left_out`: rows by the kind of what is wrong with them.
    """

    def __init__(
        self,
        corpus: str,
        root: str,
        classes: tuple[str, ...],
        gather: CorpusDatabase,
        remarks: Sequence[str],
        kind: str,
    ) -> None:
        self.corpus = corpus
        self.kind = kind
        self.root = root
        self.classes = classes
        self._gather = gather
        self._remarks = tuple(remarks)
        self._sum()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the disk space back."""
        self._gather.close()

    def videos(self) -> Iterator[Video]:
        """All videos, training first; inside a split in an order by hash, which depends on their identities alone."""
        found = self._gather.db.execute("SELECT uri, labels, split, start, end, bytes FROM videos ORDER BY rowid")
        for uri, labels, split, start, end, size in found:
            yield Video(decode_name(uri), _labels(labels), split, start, end, size)

    def refusals(self) -> Iterator[dict[str, str]]:
        """What is left out, or planned with a remark: uri, kind, reason, and where it is listed; without secrets."""
        for uri, kind, reason, file, line in self._gather.refusals():
            yield {"uri": uri, "kind": kind, "reason": reason, "where": self._gather.place(file, line)}

    def without(self, planned: Iterable[Video]) -> PlanComparison:
        """Take away what is `planned` already, by identity: uri, start and end.

        A new stretch of a planned video goes to its side; where the corpus itself puts it on the other, it is left out
        as a leak.
        """
        db = self._gather.db
        rows = (
            (
                identity_digest(encode_name(one.uri), one.start, one.end),
                encode_name(one.uri),
                one.split,
                _code(one),
                one.bytes,
            )
            for one in planned
        )
        with told():
            db.execute(
                "CREATE TABLE there (ord BLOB PRIMARY KEY, uri BLOB, split TEXT, labels TEXT, bytes INT) WITHOUT ROWID"
            )
            db.executemany("INSERT OR IGNORE INTO there VALUES (?, ?, ?, ?, ?)", rows)
            side = "0" if self._gather.by_share else "v.split <> t.split"
            differs = f"(v.labels <> t.labels OR {side} OR (v.bytes <> t.bytes AND v.bytes + t.bytes IS NOT NULL))"
            both = "FROM videos v JOIN there t ON t.ord = v.ord"
            met = db.execute(f"SELECT COUNT(*) {both}").fetchone()[0]
            total = db.execute("SELECT COUNT(*) FROM there").fetchone()[0]
            examples: list[str] = []
            changed = 0
            found = db.execute(
                f"SELECT v.uri, v.labels, t.labels, v.split, t.split, v.bytes, t.bytes, v.file, v.line {both} "
                f"WHERE {differs} ORDER BY v.rowid"
            )
            for uri, *values, file, line in found:
                changed += 1
                words = difference(values, self._gather.by_share)
                if len(examples) < 5:
                    examples.append(f"{sanitised(decode_name(uri))}: {words}")
                self._gather.refuse(file, Refusal(decode_name(uri), "changed", f"{words}; it stays as planned", line))
            db.execute(
                "CREATE TABLE fresh AS SELECT v.* FROM videos v LEFT JOIN there t ON t.ord = v.ord "
                "WHERE t.ord IS NULL ORDER BY v.rowid"
            )
            db.execute("DROP TABLE videos")
            db.execute("ALTER TABLE fresh RENAME TO videos")
            self._take_sides()
            db.execute("DROP TABLE there")
        self._sum()
        return PlanComparison(met - changed, changed, total - met, tuple(examples))

    def _take_sides(self) -> None:
        """See that no new stretch is on the other side than what is planned of its video."""
        db = self._gather.db
        if not db.execute("SELECT EXISTS (SELECT 1 FROM videos)").fetchone()[0]:
            return
        db.execute("CREATE INDEX there_uri ON there (uri, split)")
        if self._gather.by_share:
            planned = "SELECT MIN(split) FROM there t WHERE t.uri = videos.uri"
            db.execute(f"UPDATE videos SET split = ({planned}) WHERE uri IN (SELECT uri FROM there)")
            self._gather.reorder()
            return
        other = "EXISTS (SELECT 1 FROM there t WHERE t.uri = videos.uri AND t.split <> videos.split)"
        reason = "another stretch of the same video is planned for the other split"
        for uri, file, line in db.execute(f"SELECT uri, file, line FROM videos WHERE {other}"):
            self._gather.refuse(file, Refusal(decode_name(uri), "leak", reason, line))
        db.execute(f"DELETE FROM videos WHERE {other}")

    def _sum(self) -> None:
        self.counts = self._gather.counts()
        self.left_out = self._gather.refused()
        self.notes = (*left_out_notes(self._gather), *self._remarks)


def read_manifest(
    corpus: str, settings: CorpusSettings, classes: tuple[str, ...] | None = None, files: Files = files_below
) -> Manifest:
    """A corpus of any kind that `CorpusSettings.kind` names, local or in a store.

    `classes`: names that have their indices already, in a store that exists; new ones come after them. `files`: what
    lists (relative path, bytes) of the files below a folder or prefix.
    Raises UserError if it is missing, of no known kind, damaged, or holds no video that can be planned.
    """
    gather = CorpusDatabase()
    try:
        with shared_stores():
            return _read(corpus, settings, classes, files, gather)
    except BaseException:
        gather.close()
        raise


def _read(
    corpus: str, settings: CorpusSettings, classes: tuple[str, ...] | None, files: Files, gather: CorpusDatabase
) -> Manifest:
    place = normalised_root(corpus)
    if file_or_folder(place) == "file":
        shape: ListedCorpus | None = recognise_list(place, settings)
        place = place.rpartition("/")[0] or "/"
    else:
        root = gather.look(place, files(place))
        names = (name for name, _ in gather.files(root, video=False) if is_list_name(name))
        lists = list(itertools.islice(names, MOST_LISTS))
        shape = recognise_folder(place, lists, settings)
    _require_table(shape, settings, corpus)
    if shape is None:
        return _read_folder(corpus, place, settings, classes, gather)
    base = place
    if settings.media is not None:
        base = normalised_root(settings.media)
        if local_root(base) is not None and file_or_folder(base, "media folder") == "file":
            remedy = "give the folder or prefix that holds the videos as media=…"
            raise UserError("media is a file, not a folder", sanitised(base), remedy)
    book = LabelEncoder(shape.meaning, shape.names, sanitised(corpus))
    if shape.ids is not None:
        if settings.media is None:
            base = _media_of(place, shape, files, gather)
        for listing in shape.lists:
            gather.read(listing, book, None)
        gather.match(gather.look(base, files(base), shape.ids), shape.ids)
        absent = f"no video below {sanitised(base)} has this id"
    else:
        finder = FileResolver(Roots(base, settings.roots), settings.encoding)
        for listing in shape.lists:
            gather.read(listing, book, finder)
        _match_objects(gather, finder.roots, files)
        absent = "there is no such file"
    named = book.settle(classes)
    gather.settle(book, settings.validation, absent)
    remarks = [*coverage_notes(gather, named), *label_notes(gather, book, named, settings.labels_separator)]
    manifest = Manifest(corpus, base, named, gather, remarks, shape.kind)
    _require_videos(manifest, gather)
    return manifest


def _match_objects(gather: CorpusDatabase, roots: Roots, files: Files) -> None:
    """Find what rows mean in the roots that are stores, by listing these."""
    remote = [number for number in range(len(roots.places)) if roots.is_remote(number)]
    for number in remote:
        place = roots.places[number]
        gather.match_uris(gather.look(place, files(place)), functools.partial(roots.uri, number))
    if remote:
        gather.match_loosely()


def _require_table(shape: ListedCorpus | None, settings: CorpusSettings, corpus: str) -> None:
    """Raises UserError for a separator of labels where labels do not stand in a table's cells."""
    kind = "folder" if shape is None else shape.kind
    if settings.labels_separator is not None and kind not in ("csv", "jsonl", "parquet"):
        what = f"labels_separator is for the cells of tables (csv, jsonl, parquet), and this corpus is of kind {kind}"
        raise UserError(what, sanitised(corpus), "leave it out")


def _read_folder(
    corpus: str, place: str, settings: CorpusSettings, classes: tuple[str, ...] | None, gather: CorpusDatabase
) -> Manifest:
    """A folder of class folders."""
    gather.of_folders = True
    others = gather.count_files(0, video=False)
    if not gather.count_files(0, video=True):
        found = f"it holds {others} other files" if others else "it holds no file"
        remedy = "put videos (mp4, avi, mkv, webm, mov, …) into class folders: CORPUS/class/video.mp4"
        what = f"no video in the corpus; {found}, and no list that is known"
        raise UserError(what, sanitised(corpus), f"{remedy}. Known are: {LOOKED_FOR}")
    names = class_names(settings.labels, settings.encoding) if settings.labels is not None else None
    book = LabelEncoder("names", names, sanitised(corpus))
    folder = PurePosixPath(Path(corpus).absolute().as_posix()).name or "all"
    rows = folder_rows(lambda: gather.files(0, video=True), printable(folder))
    gather.read(CorpusList(sanitised(place), "line", rows), book, None, listed=True)
    named = book.settle(classes)
    gather.settle(book, settings.validation, "")
    remarks = coverage_notes(gather, named)
    if others:
        ignored = [sanitised(uri) for uri, _ in itertools.islice(gather.files(0, video=False), EXAMPLES)]
        more = ", …" if others > EXAMPLES else ""
        remarks.append(f"ignored {others} files that are not videos by their name: {', '.join(ignored)}{more}")
    remarks += label_notes(gather, book, named, None)
    manifest = Manifest(corpus, place, named, gather, remarks, "folder")
    _require_videos(manifest, gather)
    return manifest


def _media_of(place: str, shape: ListedCorpus, files: Files, gather: CorpusDatabase) -> str:
    """The folder that holds the videos of lists by id, where none was given: the lists' own, or one beside it."""
    if gather.count_files(gather.look(place, files(place)), video=True):
        return place
    for beside in shape.beside:
        try:
            found = gather.look(beside, files(beside))
        except UserError:
            continue
        if gather.count_files(found, video=True):
            return beside
    remedy = "give the folder or prefix that holds the files, e.g. media=/data/videos; nothing is downloaded"
    raise UserError("the list names videos by id, and there is no video beside it", sanitised(place), remedy)


def _require_videos(manifest: Manifest, gather: CorpusDatabase) -> None:
    """Raises UserError, with what is wrong with how many, if nothing is left to plan."""
    if any(manifest.counts.values()):
        return
    wrong = ", ".join(f"{count} {kind}" for kind, count in manifest.left_out.items() if kind not in PLANNED)
    what = f"no video that can be planned; of {gather.rows} listed: {wrong}" if gather.rows else "the list is empty"
    if manifest.left_out:
        first = next(manifest.refusals())
        what += f". The first: {first['uri']} ({first['where']}): {first['reason']}"
    remedy = "correct the list, or give the folder or prefix that holds its files as media=…"
    raise UserError(what, sanitised(manifest.corpus), remedy)


@functools.lru_cache(65536)
def _labels(code: str) -> tuple[int, ...]:
    return tuple(map(int, code.split(",")))


def _code(video: Video) -> str:
    return ",".join(map(str, sorted(video.labels)))
