"""Reads a corpus of any format into `Video` records: each once, in one split, in the plan's order; streamed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sharding.base.errors import UserError
from sharding.corpora.corpus_db import CorpusDatabase, disk_full_as_user_error
from sharding.corpora.detect import LOOKED_FOR, MOST_LISTS, detect_folder, detect_list, is_list_name
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
from sharding.media.input.source import local_root

__all__ = ["CorpusSettings", "Manifest", "PlanComparison", "Video", "is_video_name", "printable", "read_manifest"]

Files = Callable[[str], Iterable[tuple[str, int | None]]]


@dataclass(frozen=True, slots=True)
class Video:
    """One source video, or a stretch of one: where it lies, its class indices, its split.

    `uri`: its posix path relative to the corpus' root, or a full URL, or an absolute path.
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
    """How many videos of a plan a corpus still lists.

    `same`: as planned; `changed`: with other labels, split or bytes (they stay as planned), with up to five
    `examples`; `gone`: planned, but not in this corpus.
    """

    same: int
    changed: int
    gone: int
    examples: tuple[str, ...]


class Manifest:
    """The videos of a corpus, in a temporary file that is deleted when the `with` ends.

    `root`: the folder or store that its uris are relative to. `classes`: the class names. `notes`: sentences for the
    user on what was left out and what is lacking. `counts`: videos by split. `left_out`: refused rows by kind.
    """

    def __init__(
        self,
        corpus: str,
        root: str,
        classes: tuple[str, ...],
        database: CorpusDatabase,
        notes: Sequence[str],
        kind: str,
    ) -> None:
        self.corpus = corpus
        self.kind = kind
        self.root = root
        self.classes = classes
        self._database = database
        self._corpus_notes = tuple(notes)
        self._refresh_counts()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the temporary file."""
        self._database.close()

    def videos(self) -> Iterator[Video]:
        """All videos, training first; inside a split in an order by hash, which depends on their identities alone."""
        rows = self._database.db.execute("SELECT uri, labels, split, start, end, bytes FROM videos ORDER BY rowid")
        for uri, labels, split, start, end, size in rows:
            yield Video(decode_name(uri), _labels(labels), split, start, end, size)

    def refusals(self) -> Iterator[dict[str, str]]:
        """Every entry that is left out, or planned with a remark, as {uri, kind, reason, where}; without secrets."""
        for uri, kind, reason, file, line in self._database.refusals():
            yield {"uri": uri, "kind": kind, "reason": reason, "where": self._database.listed_at(file, line)}

    def remove_planned(self, planned: Iterable[Video]) -> PlanComparison:
        """Remove the videos that are `planned` already (same uri, start and end); returns the comparison.

        A new stretch of a planned video goes to that video's split; where the corpus itself puts it into the other
        split, it is left out as a leak.
        """
        db = self._database.db
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
        with disk_full_as_user_error():
            db.execute(
                "CREATE TABLE plan (ord BLOB PRIMARY KEY, uri BLOB, split TEXT, labels TEXT, bytes INT) WITHOUT ROWID"
            )
            db.executemany("INSERT OR IGNORE INTO plan VALUES (?, ?, ?, ?, ?)", rows)
            side = "0" if self._database.splits_by_share else "v.split <> t.split"
            differs = f"(v.labels <> t.labels OR {side} OR (v.bytes <> t.bytes AND v.bytes + t.bytes IS NOT NULL))"
            both = "FROM videos v JOIN plan t ON t.ord = v.ord"
            still_listed = db.execute(f"SELECT COUNT(*) {both}").fetchone()[0]
            total = db.execute("SELECT COUNT(*) FROM plan").fetchone()[0]
            examples: list[str] = []
            changed = 0
            changes = db.execute(
                f"SELECT v.uri, v.labels, t.labels, v.split, t.split, v.bytes, t.bytes, v.file, v.line {both} "
                f"WHERE {differs} ORDER BY v.rowid"
            )
            for uri, *values, list_number, line in changes:
                changed += 1
                words = difference(values, self._database.splits_by_share)
                if len(examples) < 5:
                    examples.append(f"{sanitised(decode_name(uri))}: {words}")
                self._database.add_refusal(
                    list_number, Refusal(decode_name(uri), "changed", f"{words}; it stays as planned", line)
                )
            db.execute(
                "CREATE TABLE fresh AS SELECT v.* FROM videos v LEFT JOIN plan t ON t.ord = v.ord "
                "WHERE t.ord IS NULL ORDER BY v.rowid"
            )
            db.execute("DROP TABLE videos")
            db.execute("ALTER TABLE fresh RENAME TO videos")
            self._keep_videos_on_one_side()
            db.execute("DROP TABLE plan")
        self._refresh_counts()
        return PlanComparison(still_listed - changed, changed, total - still_listed, tuple(examples))

    def _keep_videos_on_one_side(self) -> None:
        """Put new stretches of planned videos into the split that is planned, or leave them out."""
        db = self._database.db
        if not db.execute("SELECT EXISTS (SELECT 1 FROM videos)").fetchone()[0]:
            return
        db.execute("CREATE INDEX plan_uri ON plan (uri, split)")
        if self._database.splits_by_share:
            planned = "SELECT MIN(split) FROM plan t WHERE t.uri = videos.uri"
            db.execute(f"UPDATE videos SET split = ({planned}) WHERE uri IN (SELECT uri FROM plan)")
            self._database.sort_videos()
            return
        other = "EXISTS (SELECT 1 FROM plan t WHERE t.uri = videos.uri AND t.split <> videos.split)"
        reason = "another stretch of the same video is planned for the other split"
        for uri, list_number, line in db.execute(f"SELECT uri, file, line FROM videos WHERE {other}"):
            self._database.add_refusal(list_number, Refusal(decode_name(uri), "leak", reason, line))
        db.execute(f"DELETE FROM videos WHERE {other}")

    def _refresh_counts(self) -> None:
        self.counts = self._database.video_counts()
        self.left_out = self._database.refusal_counts()
        self.notes = (*left_out_notes(self._database), *self._corpus_notes)


def read_manifest(
    corpus: str, settings: CorpusSettings, classes: tuple[str, ...] | None = None, files: Files = files_below
) -> Manifest:
    """Read a corpus, local or in a store, of any kind that `CorpusSettings.kind` names.

    `classes`: names whose indices are fixed already, by a store that exists; new ones come after them. `files`: lists
    (relative path, bytes) of the files below a folder or prefix.
    Raises UserError if it is missing, of no known kind, damaged, or holds no video that can be planned.
    """
    database = CorpusDatabase()
    try:
        with shared_stores():
            return _read(corpus, settings, classes, files, database)
    except BaseException:
        database.close()
        raise


def _read(
    corpus: str, settings: CorpusSettings, classes: tuple[str, ...] | None, files: Files, database: CorpusDatabase
) -> Manifest:
    place = normalised_root(corpus)
    if file_or_folder(place) == "file":
        listed: ListedCorpus | None = detect_list(place, settings)
        place = place.rpartition("/")[0] or "/"
    else:
        root = database.add_files(place, files(place))
        names = (name for name, _ in database.files(root, video=False) if is_list_name(name))
        lists = list(itertools.islice(names, MOST_LISTS))
        listed = detect_folder(place, lists, settings)
    _require_table(listed, settings, corpus)
    if listed is None:
        return _read_folder(corpus, place, settings, classes, database)
    base = place
    if settings.media is not None:
        base = normalised_root(settings.media)
        if local_root(base) is not None and file_or_folder(base, "media folder") == "file":
            remedy = "give the folder or prefix that holds the videos as media=…"
            raise UserError("media is a file, not a folder", sanitised(base), remedy)
    encoder = LabelEncoder(listed.label_meaning, listed.class_names, sanitised(corpus))
    if listed.ids_of_path is not None:
        if settings.media is None:
            base = _media_of(place, listed, files, database)
        for corpus_list in listed.lists:
            database.add_list(corpus_list, encoder, None)
        database.match_ids(database.add_files(base, files(base), listed.ids_of_path), listed.ids_of_path)
        absent = f"no video below {sanitised(base)} has this id"
    else:
        resolver = FileResolver(Roots(base, settings.roots), settings.encoding)
        for corpus_list in listed.lists:
            database.add_list(corpus_list, encoder, resolver)
        _match_objects(database, resolver.roots, files)
        absent = "there is no such file"
    class_list = encoder.assign_classes(classes)
    database.plan_videos(encoder, settings.validation, absent)
    notes = [
        *coverage_notes(database, class_list),
        *label_notes(database, encoder, class_list, settings.labels_separator),
    ]
    manifest = Manifest(corpus, base, class_list, database, notes, listed.kind)
    _require_videos(manifest, database)
    return manifest


def _match_objects(database: CorpusDatabase, roots: Roots, files: Files) -> None:
    """Match rows with files in those roots that are stores, by listing these."""
    remote = [number for number in range(len(roots.places)) if roots.is_remote(number)]
    for number in remote:
        place = roots.places[number]
        database.match_uris(database.add_files(place, files(place)), functools.partial(roots.uri, number))
    if remote:
        database.match_loosely()


def _require_table(listed: ListedCorpus | None, settings: CorpusSettings, corpus: str) -> None:
    """Raise UserError if `labels_separator` is set for a corpus whose labels do not stand in a table's cells."""
    kind = "folder" if listed is None else listed.kind
    if settings.labels_separator is not None and kind not in ("csv", "jsonl", "parquet"):
        what = f"labels_separator is for the cells of tables (csv, jsonl, parquet), and this corpus is of kind {kind}"
        raise UserError(what, sanitised(corpus), "leave it out")


def _read_folder(
    corpus: str, place: str, settings: CorpusSettings, classes: tuple[str, ...] | None, database: CorpusDatabase
) -> Manifest:
    """Read a folder of class folders."""
    database.from_class_folders = True
    others = database.count_files(0, video=False)
    if not database.count_files(0, video=True):
        content = f"it holds {others} other files" if others else "it holds no file"
        remedy = "put videos (mp4, avi, mkv, webm, mov, …) into class folders: CORPUS/class/video.mp4"
        what = f"no video in the corpus; {content}, and no list that is known"
        raise UserError(what, sanitised(corpus), f"{remedy}. Known are: {LOOKED_FOR}")
    names = class_names(settings.labels, settings.encoding) if settings.labels is not None else None
    encoder = LabelEncoder("names", names, sanitised(corpus))
    folder = PurePosixPath(Path(corpus).absolute().as_posix()).name or "all"
    rows = folder_rows(lambda: database.files(0, video=True), printable(folder), sanitised(corpus))
    database.add_list(CorpusList(sanitised(place), "line", rows), encoder, None, from_listing=True)
    class_list = encoder.assign_classes(classes)
    database.plan_videos(encoder, settings.validation, "")
    notes = coverage_notes(database, class_list)
    if others:
        ignored = [sanitised(uri) for uri, _ in itertools.islice(database.files(0, video=False), EXAMPLES)]
        more = ", …" if others > EXAMPLES else ""
        notes.append(f"ignored {others} files that are not videos by their name: {', '.join(ignored)}{more}")
    notes += label_notes(database, encoder, class_list, None)
    manifest = Manifest(corpus, place, class_list, database, notes, "folder")
    _require_videos(manifest, database)
    return manifest


def _media_of(place: str, listed: ListedCorpus, files: Files, database: CorpusDatabase) -> str:
    """The folder with the videos of lists by id, where `media` is not set: the lists' own folder, or one beside it."""
    if database.count_files(database.add_files(place, files(place)), video=True):
        return place
    for folder in listed.media_folders:
        try:
            root = database.add_files(folder, files(folder))
        except UserError:
            continue
        if database.count_files(root, video=True):
            return folder
    remedy = "give the folder or prefix that holds the files, e.g. media=/data/videos; nothing is downloaded"
    raise UserError("the list names videos by id, and there is no video beside it", sanitised(place), remedy)


def _require_videos(manifest: Manifest, database: CorpusDatabase) -> None:
    """Raise UserError, with the number of refusals of each kind, if no video is left to plan."""
    if any(manifest.counts.values()):
        return
    wrong = ", ".join(f"{count} {kind}" for kind, count in manifest.left_out.items() if kind not in PLANNED)
    what = f"no video that can be planned; of {database.rows} listed: {wrong}" if database.rows else "the list is empty"
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
