"""kill -9 at a chosen stage of a worker's work: a module for `sitecustomize`, put into the workers' PYTHONPATH."""

from __future__ import annotations

from pathlib import Path

# stage → (module, attribute path, what its arguments name, the call at which to strike, and who is struck: the process
# itself, or its parent)
STAGES = {
    "read": ("sharding.media.input.validity", "judge_bytes", "", 2, "parent"),
    "transcode": ("sharding.media.decoding.picture", "FrameScaler.scale", "", 30, "parent"),
    "decoder": ("sharding.media.decoding.picture", "FrameScaler.scale", "", 30, "own"),
    "tar": ("sharding.make.tar_parts", "TarPartWriter.add_sample", "", 2, "own"),
    "upload": ("sharding.storage.store", "LocalStore.put_file", ".tar", 1, "own"),
    "upload to s3": ("sharding.storage.s3", "S3Store.put_file", ".tar", 1, "own"),
    "before the record": ("sharding.format.record", "write_record", "", 1, "own"),
}

_HOOK = """
import importlib.abc, importlib.machinery, os, signal, sys

MODULE, ATTRIBUTE, NAMED, CALL, WHOSE, MARK = {values!r}

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        run = spec.loader.exec_module
        def patched(module):
            run(module)
            *holders, last = ATTRIBUTE.split(".")
            holder = module
            for part in holders:
                holder = getattr(holder, part)
            real = getattr(holder, last)
            calls = [0]
            def striking(*arguments, **named):
                calls[0] += NAMED in repr(arguments[1:])
                if calls[0] == CALL:
                    try:
                        os.close(os.open(MARK, os.O_CREAT | os.O_EXCL))
                    except FileExistsError:
                        pass
                    else:
                        os.kill(os.getpid() if WHOSE == "own" else os.getppid(), signal.SIGKILL)
                        signal.pause()
                return real(*arguments, **named)
            setattr(holder, last, striking)
        spec.loader.exec_module = patched
        return spec

sys.meta_path.insert(0, Finder())
"""


def striking(stage: str, folder: Path, root: Path) -> dict[str, str]:
    """The environment in which the first worker that comes to a stage is killed; the mark it leaves is `struck`."""
    folder.mkdir()
    values = (*STAGES[stage], str(folder / "struck"))
    (folder / "sitecustomize.py").write_text(_HOOK.format(values=values))
    return {"PYTHONPATH": f"{folder}:{root}"}
