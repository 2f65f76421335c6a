"""A corpus's files on the machine that runs the job: where they are, and whether it is to blame if one fails."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from av.error import FFmpegError

from sharding.errors import UserError
from sharding.store import open_store

OF_ONE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def local_root(corpus: str) -> Path | None:
    """The folder of a corpus on this machine; None if the corpus is in a remote store."""
    scheme, separator, rest = corpus.partition("://")
    if separator and scheme not in ("file", "local"):
        return None
    return Path(rest if separator else corpus).expanduser()


@contextlib.contextmanager
def local_file(corpus: str, uri: str) -> Iterator[Path]:
    """A local path of a corpus' video: the file itself, or a copy fetched for as long as it is used."""
    root = local_root(corpus)
    if root is not None:
        yield root / uri
        return
    with tempfile.TemporaryDirectory(prefix="reelscale-video-") as folder:
        path = Path(folder) / f"video{PurePosixPath(uri).suffix}"
        open_store(corpus).get_file(uri, path)
        yield path


def require_readable(corpus: str, uri: str, error: Exception) -> None:
    """Raises UserError if a video failed because the corpus cannot be read here, and not because of the video.

    A file that is missing, forbidden or a folder is at fault itself, as long as the folder it lies in can
    be read and holds something.
    """
    hindrance = _hindrance(corpus, uri, error)
    if hindrance is not None:
        remedy = (
            "see that every machine that shards can read the corpus under this path, and that its disk is sound, "
            "or leave the file out; then run the same command again: it goes on where it stopped"
        )
        what = f"the corpus cannot be read here: {hindrance.strerror or hindrance}"
        raise UserError(what, f"{corpus.rstrip('/')}/{uri}", remedy) from hindrance


def _hindrance(corpus: str, uri: str, error: Exception) -> OSError | None:
    """What keeps this machine from reading the corpus, None if nothing does.

    FFmpeg's word for an error of the disk may be any, so the file is read once more without it.
    """
    if isinstance(error, OSError) and not isinstance(error, (*OF_ONE_FILE, FFmpegError)):
        return error
    root = local_root(corpus)
    if root is None:
        return None
    path = root / uri
    try:
        with os.scandir(path.parent) as entries:
            if next(entries, None) is None:
                return FileNotFoundError(f"the folder {path.parent} is empty")
        if not os.access(path.parent, os.X_OK):
            return PermissionError(f"the folder {path.parent} may not be entered")
    except OSError as found:
        return found
    try:
        with path.open("rb") as file:
            while file.read(2**20):
                pass
    except OF_ONE_FILE:
        return None
    except OSError as found:
        return found
    return None
