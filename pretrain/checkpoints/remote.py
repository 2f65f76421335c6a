"""A run's checkpoints in a store: the manifest put last, under names that no other attempt writes.

`RUN/checkpoints/step-00000040/attempt-000002/…` holds what the folder of a run has in `step-00000040`. The attempt is
part of the name because two may upload at once, where one was thought dead: neither can damage the other's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pretrain.checkpoints.manifest import MANIFEST, Manifest, kept, read_manifest, step_name
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
        """The numbers that were claimed."""
        prefix = f"{self._run}/attempts/"
        return [path.removeprefix(prefix) for path in self._store.list(prefix)]

    def claim(self, attempt: int) -> None:
        """Claim a number. Raises FileExistsError if it is taken."""
        with self._writing():
            self._store.put(f"{self._run}/attempts/{attempt:06d}", b"", create=True)

    def get(self, name: str) -> bytes | None:
        """What is beside the checkpoints under a name, if it is there."""
        try:
            return self._store.get(f"{self._run}/{name}")
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Put something beside the checkpoints."""
        with self._writing():
            self._store.put(f"{self._run}/{name}", data)

    def committed(self) -> list[tuple[int, int]]:
        """(step, attempt) of all committed checkpoints."""
        return [place for place, names in self._files().items() if MANIFEST in names]

    def upload(self, folder: Path, manifest: Manifest, fence: Callable[[], None]) -> None:
        """Put a committed folder's files, and the manifest once `fence` has not raised."""
        for (step, attempt), names in self._files().items():
            if attempt <= manifest.attempt and MANIFEST not in names:  # an upload that failed, or was killed
                self._delete(step, attempt, names)
        place = self._place(manifest.step, manifest.attempt)
        self._store.delete(f"{place}/{MANIFEST}")  # this attempt may have saved the step before
        for name in manifest.files:
            self._store.put_file(f"{place}/{name}", folder / name)
        fence()
        self._store.put(f"{place}/{MANIFEST}", manifest.encoded(), create=True)

    def download(self, step: int, attempt: int, folder: Path) -> Manifest:
        """Fetch a checkpoint's files into an empty folder, to be verified there.

        Raises ValueError if it is damaged, FileNotFoundError if part of it is missing.
        """
        place = self._place(step, attempt)
        data = self._store.get(f"{place}/{MANIFEST}")
        manifest = read_manifest(data, f"{self.where}/{place}")
        if (manifest.step, manifest.attempt) != (step, attempt):
            raise ValueError("its manifest is another checkpoint's")
        for name in manifest.files:
            self._store.get_file(f"{place}/{name}", folder / name)
        (folder / MANIFEST).write_bytes(data)
        return manifest

    def prune(self, saved: Manifest, keep: int) -> None:
        """Leave what is to be kept (`kept`), what a newer attempt put, and what another version wrote."""
        found: dict[tuple[int, int], Manifest] = {}
        useless = []
        files = self._files()
        for step, attempt in [key for key in files if MANIFEST in files[key] and key[1] <= saved.attempt]:
            place = self._place(step, attempt)
            try:
                manifest = read_manifest(self._store.get(f"{place}/{MANIFEST}"), place)
            except UserError:
                continue
            except (ValueError, FileNotFoundError):
                useless.append((step, attempt))
                continue
            if set(manifest.files) <= files[step, attempt]:
                found[step, attempt] = manifest
            else:
                useless.append((step, attempt))
        keepers = kept(found.values(), saved, keep)
        useless += [key for key, manifest in found.items() if manifest not in keepers]
        for step, attempt in useless:
            self._delete(step, attempt, files[step, attempt])

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

    def _delete(self, step: int, attempt: int, names: Iterable[str]) -> None:
        for name in sorted(names, key=lambda name: name != MANIFEST):  # the manifest first: the rest is nothing then
            self._store.delete(f"{self._place(step, attempt)}/{name}")

    def _files(self) -> dict[tuple[int, int], set[str]]:
        """The names of all files by (step, attempt)."""
        prefix = f"{self._run}/checkpoints/"
        found: dict[tuple[int, int], set[str]] = {}
        for path in self._store.list(prefix):
            match = _PLACE.fullmatch(path.removeprefix(prefix))
            if match:
                found.setdefault((int(match[1]), int(match[2])), set()).add(match[3])
        return found

    def _place(self, step: int, attempt: int) -> str:
        return f"{self._run}/checkpoints/{step_name(step)}/attempt-{attempt:06d}"
