"""A run's checkpoints in its folder and its store: numbered starts, saving beside training, finding and loading."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError

from pretrain.checkpoints.async_saver import AsyncSaver
from pretrain.checkpoints.attempts import claim, highest, newest_attempt, require_newest
from pretrain.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointChoice,
    CheckpointSettings,
    load_checkpoint,
    save_checkpoint,
)
from pretrain.checkpoints.checkpoint_manifest import CheckpointId, step_name
from pretrain.checkpoints.fetch import fetch
from pretrain.checkpoints.folder import DamagedCheckpoint, checkpoints_of, committed, manifest_in, require_sound
from pretrain.checkpoints.history import restore_history
from pretrain.checkpoints.identity import fetch_settings
from pretrain.checkpoints.remote import Remote
from pretrain.engine.distributed import World
from sharding.base.atomic import atomic_write
from sharding.base.errors import UserError

log = logging.getLogger("reelscale")

ALONE = World(0, 1, torch.device("cpu"))
_REMEDY = "make room on the disk, then give the same command: it goes on from the checkpoint before"


class Checkpointer:
    """Saves, finds and loads the checkpoints of one run. Each rank has its own; rank 0 decides and writes.

    Methods that are collectives say so. Those of a process that is `ALONE` wait for nobody.
    """

    def __init__(self, run: Path, settings: CheckpointSettings | None = None, world: World = ALONE) -> None:
        """Without `settings`, a mere look at the run: no store is asked, and nothing is written by looking.

        With them, which only a run that goes on gives, checkpoints in their store count, too, and come into the run's
        folder before they are loaded; so do the histories of its metrics and settings.
        """
        self._run, self._settings, self._world = run, settings, world
        self._saver = AsyncSaver(self._save)
        self._verified: dict[CheckpointId, Path] = {}
        self.attempt = 0

    def fetch_settings(self) -> None:
        """Before a run begins on an empty disk: bring its settings, which say what it began with, from the store."""
        remote = self._open_store()
        if remote:
            fetch_settings(self._run, remote)

    def begin_attempt(self) -> int:
        """Number this start of the run, one more than any before; older ones commit nothing any more. A collective.

        Raises UserError if the settings' store cannot be used, or if it holds another run of that name.
        """
        number = claim(self._run, self._open_store()) if self._world.rank == 0 else 0
        self.attempt = self._world.broadcast(number)
        return self.attempt

    def has_any(self) -> bool:
        """Whether there is a checkpoint, sound or not, in the run's folder or in the store."""
        if committed(self._run):
            return True
        remote = self._open_store()
        return bool(remote and any(remote.committed()))

    def newest(self) -> CheckpointId | None:
        """The newest undamaged checkpoint, or None; the same on every rank, as rank 0 finds it. A collective.

        It is the last of the last attempt that saved any; a damaged one is skipped with a warning.
        Raises UserError if the store or the disk cannot be used, for another version's checkpoint, and if there are
        some and all are damaged: to begin anew would take the place of what may still be saved.
        """

        def attempt_and_step() -> str:
            newest = self._find_newest()
            return f"{newest.attempt} {newest.step}" if newest else "0 -1"

        attempt, step = map(int, self._world.broadcast_text(attempt_and_step).split())
        return CheckpointId(attempt, step) if step >= 0 else None

    def load(self, which: CheckpointId | None = None) -> Checkpoint:
        """The checkpoint that `newest` named, of any rank, from the run's folder or else from the store.

        Without `which`, the newest one; then a collective. Raises UserError where there is none.
        """
        return load_checkpoint(self._folder_of(which or self._require_newest()))

    def load_weights_only(self, choice: CheckpointChoice = "newest") -> Checkpoint:
        """The newest or the best checkpoint without its optimizer's state, which is not read.

        Raises UserError without any.
        """
        newest = self._require_newest()
        which = newest if choice == "newest" else self._best(newest)
        return load_checkpoint(self._folder_of(which), optimizer=False)

    def save(self, checkpoint: Checkpoint) -> None:
        """Save rank 0's checkpoint in the background, once the one before is written. A collective.

        Its tensors lie in host memory and are left alone from now on. Raises Superseded if a newer attempt has begun,
        also where only the checkpoint before found that out. One that cannot be saved costs a warning; those before
        it stay as they are.
        """
        if self._world.rank == 0:
            self._saver.wait()
            require_newest(self.attempt, newest_attempt(self._run), str(self._run))
            self._saver.save(checkpoint)
        self._world.barrier()  # rank 0 may wait long for the save before, which is no hang

    def wait(self) -> None:
        """Wait until nothing is being saved by this rank, without its device. Raises Superseded. No collective."""
        self._saver.wait()

    def finish(self) -> None:
        """Wait until all is saved. Raises Superseded, or UserError if the last one could not be. A collective."""
        self._saver.finish()
        self._world.barrier()

    def commit(self, checkpoint: Checkpoint) -> Path:
        """Save a checkpoint at once, in the run's folder alone; returns its folder. See `save_checkpoint`."""
        return save_checkpoint(self._run, self.attempt, checkpoint, (self._settings or CheckpointSettings()).keep)

    def write_beside(self, name: str, data: bytes) -> None:
        """Write a small file beside the checkpoints, in the folder and in the store. Raises UserError."""
        try:
            with atomic_write(self._run / name) as aside:
                aside.write_bytes(data)
        except OSError as error:
            raise UserError(f"{name} cannot be written: {error}", str(self._run), "look after the disk") from error
        if self._store:
            try:
                self._store.put(name, data)
            except FileExistsError as error:
                what = f"{name} cannot be written: {error}"
                raise UserError(what, self._store.where, "look after the store") from error

    def read_beside(self, name: str) -> bytes | None:
        """A small file of the run's folder, or else of the store; None where it is in neither."""
        if (self._run / name).exists():
            return (self._run / name).read_bytes()
        return self._store.get(name) if self._store else None

    @functools.cached_property
    def _store(self) -> Remote | None:
        """The store, of which an address that does not answer shows at the first use only."""
        return self._open_store(ask=False)

    def _open_store(self, ask: bool = True) -> Remote | None:
        """The run's place in the settings' store, if they name one. Raises UserError if it does not answer."""
        return Remote(self._settings.store, self._run, ask) if self._settings and self._settings.store else None

    def _find_newest(self) -> CheckpointId | None:
        remote, folders = self._open_store(), self._folders()
        in_store = set(remote.committed()) if remote else set()
        for which in sorted({*folders, *in_store}, reverse=True):
            for folder in sorted(folders.get(which, []), reverse=True):  # a replaced one last
                try:
                    require_sound(folder, which)
                    if remote and self.attempt and which not in in_store:
                        self._upload_late(remote, folder)
                    return self._take(which, folder)
                except DamagedCheckpoint as error:
                    _warn_of_damage(folder, error)
            if remote and which in in_store:
                try:
                    return self._take(which, fetch(self._run, remote, which))
                except DamagedCheckpoint as error:
                    _warn_of_damage(f"{remote.where}, step {which.step}, attempt {which.attempt}", error)
        if committed(self._run) or in_store:
            raise UserError(
                "none of the run's checkpoints is undamaged",
                str(checkpoints_of(self._run)),
                "move them away (and those in checkpoint.store) to begin the run anew",
            )
        return None

    def _folders(self) -> dict[CheckpointId, list[Path]]:
        """The folders that hold each checkpoint, by their manifests; those without a good one only cost a warning."""
        folders: dict[CheckpointId, list[Path]] = {}
        for folder in committed(self._run):
            try:
                folders.setdefault(manifest_in(folder).id, []).append(folder)
            except ValueError as error:
                _warn_of_damage(folder, error)
        return folders

    def _take(self, which: CheckpointId, folder: Path) -> CheckpointId:
        if self._settings:
            restore_history(self._run, folder)
        self._verified = {which: folder}
        return which

    def _require_newest(self) -> CheckpointId:
        newest = self.newest()
        if newest is None:
            remedy = "train this run first, or name another run's folder"
            raise UserError("no checkpoint to start from", str(self._run), remedy)
        return newest

    def _best(self, newest: CheckpointId) -> CheckpointId:
        """The sound checkpoint of the highest clip@1, of equally good ones the last, as `retention.kept` has it."""
        validated: dict[CheckpointId, float] = {}
        for which, folders in self._folders().items():
            for folder in folders:
                clip1 = manifest_in(folder).clip1
                if clip1 is not None and which.step <= newest.step:
                    validated[which] = clip1
        for which in sorted(validated, key=lambda each: (validated[each], each.step, each.attempt), reverse=True):
            try:
                self._verified = {which: self._sound_folder(which)}
                return which
            except DamagedCheckpoint as error:
                _warn_of_damage(checkpoints_of(self._run) / step_name(which.step), error)
        what = "no checkpoint of the run was validated, so that none is the best"
        raise UserError(what, str(self._run), "take the newest one: checkpoint=newest")

    def _sound_folder(self, which: CheckpointId) -> Path:
        """A folder of the run that holds a checkpoint undamaged. Raises DamagedCheckpoint where none does."""
        folder = checkpoints_of(self._run) / step_name(which.step)
        replaced = [place for place in committed(self._run) if place != folder and place.name.endswith(folder.name)]
        reasons = []
        for candidate in (folder, *replaced):
            try:
                require_sound(candidate, which)
                return candidate
            except DamagedCheckpoint as error:
                reasons.append(error)
        raise reasons[0]

    def _folder_of(self, which: CheckpointId) -> Path:
        """An undamaged folder of a checkpoint, fetched where it is in the store alone."""
        if which in self._verified:  # by `newest`, a moment ago
            return self._verified.pop(which)
        try:
            return self._sound_folder(which)
        except DamagedCheckpoint as error:
            reason = error
        try:
            remote = self._open_store()
            if remote:
                return fetch(self._run, remote, which)
        except DamagedCheckpoint as error:
            reason = error
        raise UserError(
            f"rank 0 goes on from step {which.step} of attempt {which.attempt}, which this rank cannot read ({reason})",
            str(checkpoints_of(self._run) / step_name(which.step)),
            "put the run's folder on a file system that all machines share, or set checkpoint.store=URL",
        )

    def _save(self, checkpoint: Checkpoint) -> UserError | None:
        """Commit a checkpoint and upload it; what went wrong with the disk or the store. In the saver's thread."""
        try:
            folder = self.commit(checkpoint)
        except (OSError, SafetensorError) as error:
            what = f"the checkpoint at step {checkpoint.step} could not be saved: {error}"
            return UserError(what, str(self._run), _REMEDY)
        log.info("checkpoint %s", folder)
        try:
            self._upload(folder)
            return None
        except UserError as error:
            cause = error
        except OSError as error:
            cause = UserError(str(error), str(folder), "look after the disk")
        what = f"the checkpoint at step {checkpoint.step} could not be kept in the store: {cause.what}"
        return UserError(what, cause.where, f"{cause.remedy}; it is in {folder}")

    def _upload(self, folder: Path) -> None:
        if not self._store or not self._settings:
            return
        manifest = manifest_in(folder)
        self._store.upload(folder, manifest, self._fence)
        self._store.prune(manifest, self._settings.keep)
        log.info("checkpoint %s, step %d", self._store.where, manifest.step)

    def _upload_late(self, remote: Remote, folder: Path) -> None:
        """Upload what an attempt saved and was ended before it could upload: ranks with disks of their own need it."""
        try:
            remote.upload(folder, manifest_in(folder), self._fence)
            log.info("checkpoint %s, from %s", remote.where, folder)
        except FileExistsError:  # the attempt that saved it has just done so
            pass
        except (UserError, OSError) as error:
            log.warning("%s is not in the store, from where other machines' ranks would read it: %s", folder, error)

    def _fence(self) -> None:
        """Raises Superseded if a newer attempt has begun anywhere that shares the store."""
        if self._store:
            require_newest(self.attempt, highest(self._store.attempts()), self._store.where)


def _warn_of_damage(where: object, why: object) -> None:
    log.warning("skipping the damaged checkpoint %s (%s)", where, why)
