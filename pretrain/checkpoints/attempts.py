"""The starts of a run, numbered: only the newest may commit, in its folder and in its store."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pretrain.checkpoints.identity import keep_settings
from pretrain.checkpoints.remote import Remote
from sharding.base.errors import NotRetryable


class Superseded(NotRetryable):
    """A newer attempt of the run has begun; this one must not write any more, nor take the run from it again."""


def claim(run: Path, remote: Remote | None) -> int:
    """Number this start of the run: one more than any before, here and in the store.

    A file and an object made only where there is none are the claim. Raises UserError if the store cannot be used, or
    if it holds another run of that name.
    """
    if remote:
        keep_settings(run, remote)
    folder = run / "attempts"
    folder.mkdir(parents=True, exist_ok=True)
    number = max(newest_attempt(run), highest(remote.attempts()) if remote else 0) + 1
    while True:
        try:
            if remote:
                remote.claim(number)
            (folder / f"{number:06d}").touch(exist_ok=False)
            return number
        except FileExistsError:
            number += 1


def newest_attempt(run: Path) -> int:
    """The highest attempt number of the run's folder; 0 if it never began."""
    return highest(path.name for path in (run / "attempts").glob("[0-9]*"))


def require_newest(attempt: int, newest: int, where: str) -> None:
    """Raises Superseded if a newer attempt has begun."""
    if newest > attempt:
        raise Superseded(f"attempt {attempt} of {where} was replaced by attempt {newest}")


def highest(names: Iterable[str]) -> int:
    """The highest number among names; 0 without any."""
    return max((int(name) for name in names if name.isdecimal()), default=0)
