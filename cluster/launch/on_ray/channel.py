"""What the command and the ranks that Ray placed say to each other, without a disk that both see.

An actor on the command's node carries it: where ranks are, that the run has begun, what its log says; and the request
to stop, which a thread of each node's first rank puts down as the file `stop` in the run's folder there.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Self

from cluster.launch.on_ray.cluster import actor_here
from cluster.launch.on_ray.credentials import StoreCredentials
from pretrain.resilience.stop_signal import BEGUN_FILE, STOP_FILE
from sharding.base import environment

_LOG = "train.log"
_EVERY_SECONDS = 0.5
_ANSWER_SECONDS, _ARRIVE_SECONDS = 10.0, 60.0


class Channel:
    """The actor's class: keeps what ranks say until the command takes it, and the command's request to stop."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._hosts: dict[int, str] = {}
        self._begun = self._asked = False
        self._credentials = StoreCredentials(())

    def keep_credentials(self, credentials: StoreCredentials) -> None:
        """Keep the command's access to stores for the ranks."""
        self._credentials = credentials

    def arrive(self, rank: int, host: str) -> StoreCredentials:
        """Keep where a rank runs; returns the command's access to stores."""
        self._hosts[rank] = host
        return self._credentials

    def report(self, text: str, begun: bool) -> bool:
        """Keep what is new of a rank's log, and whether the run has begun; returns whether it is asked to stop."""
        self._text.append(text)
        self._begun = self._begun or begun
        return self._asked

    def ask_to_stop(self) -> None:
        """Have the ranks save and stop."""
        self._asked = True

    def take(self) -> tuple[str, bool, dict[int, str]]:
        """The log's new text, whether the run has begun, and the host of each rank that has come."""
        text, self._text = "".join(self._text), []
        return text, self._begun, self._hosts


def open_channel(ray: Any) -> Any:
    """A handle of the actor, which lives on the command's own node as long as the command does."""
    channel = actor_here(ray, Channel)
    channel.keep_credentials.remote(StoreCredentials.of_this_process())
    return channel


class RankChannel:
    """A rank's end of it, for as long as the `with` lasts. On rank 0 it sends the log, too."""

    def __init__(self, ray: Any, channel: Any, folder: Path) -> None:
        self._ray, self._channel, self._folder = ray, channel, folder
        self._first, self._of_node = environment.rank() == 0, environment.local_rank() == 0
        self._log = folder / _LOG
        self._position = self._log.stat().st_size if self._log.exists() else 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="channel", daemon=True)

    def __enter__(self) -> Self:
        host = self._ray.util.get_node_ip_address()
        self._ray.get(self._channel.arrive.remote(environment.rank(), host), timeout=_ARRIVE_SECONDS).adopt()
        if self._of_node:
            for name in (STOP_FILE, BEGUN_FILE):
                (self._folder / name).unlink(missing_ok=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._of_node:
            self._thread.join(timeout=_ANSWER_SECONDS)
            for name in (STOP_FILE, BEGUN_FILE):
                (self._folder / name).unlink(missing_ok=True)

    def _carry(self) -> None:
        last = False
        while not last:
            last = self._over.wait(_EVERY_SECONDS)
            self._carry_once()

    def _carry_once(self) -> None:
        text = self._new_text() if self._first else ""
        begun = self._first and (self._folder / BEGUN_FILE).exists()
        try:
            asked = self._ray.get(self._channel.report.remote(text, begun), timeout=_ANSWER_SECONDS)
        except self._ray.exceptions.RayError:
            return  # the command is gone, and Ray ends this rank soon; or it is away for a while
        if asked and self._folder.exists():
            (self._folder / STOP_FILE).touch()

    def _new_text(self) -> str:
        if not self._log.exists():
            return ""
        with self._log.open(errors="replace") as file:
            file.seek(self._position)
            text = file.read()
            self._position = file.tell()
        return text
