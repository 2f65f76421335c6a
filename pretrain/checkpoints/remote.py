"""A run's checkpoints in a store: the manifest put last, under names that no other attempt writes.

`RUN/checkpoints/step-00000040/attempt-000002/…` holds what the folder of a run has in `step-00000040`. The attempt is
part of the name because two may upload at once, where one was thought dead: neither can damage the other's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pretrain.checkpoints.checkpoint_manifest import (
    MANIFEST,
    CheckpointId,
    CheckpointManifest,
    read_checkpoint_manifest,
    step_name,
)
from pretrain.checkpoints.retention import to_discard
from sharding.base.errors import UserError
from sharding.base.redact import redacted
from sharding.storage.store import open_store

_PLACE = re.compile(r"step-(\d+)/attempt-(\d+)/(.+)")
_PATIENCE = 60.0  # seconds that a request is tried for: training may come to wait for it


class Remote:
    """The place of a run in a store. Every method raises UserError when the store cannot be used."""

    def __init__(self, url: str, run: Path, ask: bool = True) -> None:
        """`ask`: see `open_store`. The run is known by its folder's name."""
        self._store = open_store(url, _PATIENCE, ask)
        self._run = run.absolute().name
        self.where = redacted(f"{self._store.url}/{self._run}")

    def attempts(self) -> list[str]:
        """The names of the attempt numbers that were claimed."""
        prefix = f"{self._run}/attempts/"
        return [path.removeprefix(prefix) for path in self._store.list(prefix)]

    def claim(self, attempt: int) -> None:
        """Claim a number. Raises FileExistsError if it is taken."""
        with self._writing():
            self._store.put(f"{self._run}/attempts/{attempt:06d}", b"", create=True)

    def get(self, name: str) -> bytes | None:
        """The content of a file beside the checkpoints, or None."""
        try:
            return self._store.get(f"{self._run}/{name}")
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Put a file beside the checkpoints."""
        with self._writing():
            self._store.put(f"{self._run}/{name}", data)

    def committed(self) -> list[CheckpointId]:
        """All committed checkpoints, damaged ones with them."""
        return [which for which, names in self._files().items() if MANIFEST in names]

    def upload(self, folder: Path, manifest: CheckpointManifest, fence: Callable[[], None]) -> None:
        """Put a committed folder's files, and the manifest once `fence` has not raised."""
        for which, names in self._files().items():
            if which.attempt <= manifest.attempt and MANIFEST not in names:  # an upload that failed, or was killed
                self._delete(which, names)
        place = self._place(manifest.id)
        self._store.delete(f"{place}/{MANIFEST}")  # this attempt may have saved the step before
        for name in manifest.files:
            self._store.put_file(f"{place}/{name}", folder / name)
        fence()
        self._store.put(f"{place}/{MANIFEST}", manifest.encoded(), create=True)

    def download(self, which: CheckpointId, folder: Path) -> None:
        """Fetch a checkpoint's files into an empty folder, to be verified there.

        Raises ValueError if it is damaged, FileNotFoundError if part of it is missing.
        """
        place = self._place(which)
        data = self._store.get(f"{place}/{MANIFEST}")
        manifest = read_checkpoint_manifest(data, f"{self.where}/{place}")
        if manifest.id != which:
            raise ValueError("its manifest is another checkpoint's")
        for name in manifest.files:
            self._store.get_file(f"{place}/{name}", folder / name)
        (folder / MANIFEST).write_bytes(data)

    def prune(self, saved: CheckpointManifest, keep: int) -> None:
        """Delete the checkpoints that are not to be kept (`to_discard`), but leave another version's."""
        manifests: dict[CheckpointId, CheckpointManifest | None] = {}
        files = self._files()
        for which in [key for key in files if MANIFEST in files[key] and key.attempt <= saved.attempt]:
            place = self._place(which)
            try:
                manifest = read_checkpoint_manifest(self._store.get(f"{place}/{MANIFEST}"), place)
            except UserError:
                continue
            except (ValueError, FileNotFoundError):
                manifests[which] = None
            else:
                manifests[which] = manifest if set(manifest.files) <= files[which] else None
        for which in to_discard(manifests, saved, keep):
            self._delete(which, files[which])

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A store has FileNotFoundError for what is absent: here it is a folder that cannot be made."""
        try:
            yield
        except FileExistsError:
            raise
        except UserError as error:
            what = f"checkpoints cannot be kept at {self.where}: {error.what}"
            raise UserError(what, "checkpoint.store", error.remedy) from error
        except OSError as error:
            what = f"checkpoints cannot be kept at {self.where}: {error}"
            remedy = "give a directory that can be made and written to, or a URL"
            raise UserError(what, "checkpoint.store", remedy) from error

    def _delete(self, which: CheckpointId, names: Iterable[str]) -> None:
        for name in sorted(names, key=lambda name: name != MANIFEST):  # the manifest first: the rest is nothing then
            self._store.delete(f"{self._place(which)}/{name}")

    def _files(self) -> dict[CheckpointId, set[str]]:
        """The names of all files by checkpoint."""
        prefix = f"{self._run}/checkpoints/"
        files: dict[CheckpointId, set[str]] = {}
        for path in self._store.list(prefix):
            match = _PLACE.fullmatch(path.removeprefix(prefix))
            if match:
                files.setdefault(CheckpointId(attempt=int(match[2]), step=int(match[1])), set()).add(match[3])
        return files

    def _place(self, which: CheckpointId) -> str:
        return f"{self._run}/checkpoints/{step_name(which.step)}/attempt-{which.attempt:06d}"
