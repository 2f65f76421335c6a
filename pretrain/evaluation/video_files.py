"""Finds videos by their paths and URLs, and makes of each, in child processes, what `shard` would store of it."""

from __future__ import annotations

import os
import posixpath
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pretrain.data.reading.video_in_memory import VideoInMemory
from sharding.base.errors import UserError
from sharding.base.scratch import scratch
from sharding.corpora.entries.roots import file_or_folder, files_below, is_video_name, normalised_root, sanitised
from sharding.corpora.manifest import Video
from sharding.format.index import HEAD
from sharding.media.clip import Clip
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.source import Source, local_root
from sharding.media.isolation import Isolated
from sharding.media.transcode import VideoSettings, transcode

_STALL_SECONDS = 300.0  # without a frame, after which a video is given up
_MOST_THREADS = 16  # that decode one video
_CLOSING_SECONDS = 0.2


@dataclass(frozen=True)
class VideoFile:
    """A video, as `name` says it: at `uri` below `root`, a folder or the URL of one."""

    name: str
    root: str
    uri: str


@dataclass(frozen=True)
class Stretch:
    """The stretch of a video that is looked at, in seconds; None: from its beginning, to its end."""

    start: float | None = None
    end: float | None = None


def videos_at(places: Sequence[str]) -> list[VideoFile]:
    """The videos of files, folders and URLs of either, each once; of a folder those that `shard` would take, sorted.

    Raises UserError for a place that is not there, a folder without a video, a store of shards, and the web.
    """
    videos: dict[str, VideoFile] = {}
    for place in places:
        for video in _at(place):
            videos.setdefault(posixpath.join(video.root, video.uri), video)
    return list(videos.values())


class VideoReader:
    """Reads videos in the form in which `shard` would store them; its processes end with it. A context manager.

    Of the `forms` a later one is for videos that cannot have those before it: encode.copy takes not every codec.
    `processes`: how many read side by side; a single one has several threads, which change no byte.
    """

    def __init__(self, forms: Sequence[VideoSettings], stretch: Stretch, processes: int) -> None:
        self._forms, self._stretch = forms, stretch
        self._processes = processes
        self._threads = min(max(1, (os.cpu_count() or 1) // processes), _MOST_THREADS)
        self._pool = ThreadPoolExecutor(processes, thread_name_prefix="video-reader")
        self._local, self._children = threading.local(), list[Isolated]()
        self._asked: deque[Future[VideoInMemory]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, also those that are at work."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        while wait(self._asked, _CLOSING_SECONDS).not_done:
            for child in self._children:
                child.close()
        for child in self._children:
            child.close()

    def read(self, files: Iterable[VideoFile]) -> Generator[tuple[VideoFile, VideoInMemory | BadVideo]]:
        """Each video, or what is wrong with it, in order; as many as there are processes are read ahead.

        Raises UserError for a store or a disk that cannot be used.
        """
        coming: deque[VideoFile] = deque()
        for file in files:
            coming.append(file)
            self._asked.append(self._pool.submit(self._one, file))
            if len(coming) > self._processes:
                yield self._next(coming)
        while coming:
            yield self._next(coming)

    def _next(self, coming: deque[VideoFile]) -> tuple[VideoFile, VideoInMemory | BadVideo]:
        try:
            video: VideoInMemory | BadVideo = self._asked[0].result()
        except BadVideo as error:
            video = error
        self._asked.popleft()
        return coming.popleft(), video

    def _one(self, file: VideoFile) -> VideoInMemory:
        for form in self._forms[:-1]:
            with suppress(_Unsupported):
                return self._in(form, file)
        return self._in(self._forms[-1], file)

    def _in(self, form: VideoSettings, file: VideoFile) -> VideoInMemory:
        source = Source(file.root, file.uri)
        video = Video(file.uri, (), "val", self._stretch.start, self._stretch.end)
        try:
            with scratch("predict") as folder:
                made = list(self._child().all_of(transcode, source, video, form, self._threads, folder=folder))
        except BadVideo as error:
            if error.kind == "unsupported":
                raise _Unsupported(error.kind, error.reason, error.detail) from error
            raise
        except MemoryError as error:
            raise BadVideo("crashed", "it needs more memory than there is", str(error)) from error
        except OSError as error:
            raise BadVideo("unreadable", "the file cannot be read", error.strerror or str(error)) from error
        except RuntimeError as error:  # with the child's traceback
            raise BadVideo("unexpected", "it could not be read", str(error).strip().splitlines()[-1]) from error
        (clip,) = made
        assert isinstance(clip, Clip), "a whole video, or a stretch of one, is good or raises BadVideo"
        return VideoInMemory(file.name, clip)

    def _child(self) -> Isolated:
        """The process of this thread."""
        child: Isolated | None = getattr(self._local, "child", None)
        if child is None:
            child = self._local.child = Isolated(_STALL_SECONDS)
            self._children.append(child)
        return child


class _Unsupported(BadVideo):
    """A video that cannot be stored in one form, and may be in another."""


def _at(place: str) -> Iterator[VideoFile]:
    root = normalised_root(place)
    path = local_root(root)
    if path is not None and not path.is_dir():
        if not os.path.lexists(path):
            raise UserError("there is no such video", sanitised(place), "check the path of the file or folder")
        yield VideoFile(place, str(path.parent), path.name)
    elif path is None and file_or_folder(root) == "file":
        above, _, name = root.rpartition("/")
        yield VideoFile(place, above, name)
    else:
        yield from _below(place, root)


def _below(place: str, root: str) -> list[VideoFile]:
    names = [name for name, _ in files_below(root)]
    if HEAD in names:
        remedy = "score its videos by reelscale evaluate CONFIG run=RUN store=STORE, or give the files it was made from"
        raise UserError("this is a store of shards, and no folder of videos", sanitised(place), remedy)
    videos = sorted(name for name in names if is_video_name(name))
    if not videos:
        what = f"no video in it ({len(names)} other files)" if names else "there is no video, and nothing else"
        raise UserError(what, sanitised(place), "give a video, or a folder with some: mp4, avi, mkv, webm, mov, …")
    return [VideoFile(posixpath.join(_shown_root(place), name), root, name) for name in videos]


def _shown_root(place: str) -> str:
    return place if local_root(place) is None else str(Path(place))
