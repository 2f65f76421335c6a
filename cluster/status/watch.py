"""Everything that `reelscale status` was asked for, looked at: targets' files, processes, runs' folders, a cluster."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cluster.monitor.prometheus.scrape_config import ScrapeSettings
from cluster.monitor.targets import Target, read_targets, targets_folder
from cluster.status.log_problems import log_problems, read_log
from cluster.status.pages import Figures, parse_page
from cluster.status.scraping import Reply, ask, open_reader
from cluster.status.states import OUTCOMES, Snapshot, WorkState
from cluster.status.work_state import PRESSING_SECONDS, Files, Key, grouped, work_state
from cluster.submission.ray_jobs import JobState, NodeState, RayJobs
from cluster.submission.run_state import LOG, is_run, last_event, run_state
from pretrain.checkpoints.attempts import newest_attempt
from pretrain.run_settings import read_settings_file
from sharding.base import environment
from sharding.base.errors import CommandFailed, UserError
from sharding.base.user_paths import expanded

_CLUSTER_SECONDS = 5.0  # for which a cluster's answer holds
_TRAINS = ("pretrain", "finetune", "")


class Watch:
    """Looks at what is named: runs by their folders, stores, evaluations, jobs; at all that is known unless named."""

    def __init__(self, names: Sequence[str], settings: ScrapeSettings) -> None:
        """Raises UserError for files of `settings` that cannot be read."""
        self._names, self._settings = list(dict.fromkeys(names)), settings
        self.targets = targets_folder(settings.targets)
        self._reader = open_reader(settings)
        self._seen: dict[Key, WorkState] = {}  # of what is named and has no folder that would say how it ended
        self._cluster: tuple[float, list[JobState], list[NodeState]] | None = None

    def look(self) -> Snapshot:
        """How it all is now.

        Raises UserError for a name that nothing has, and for a cluster that does not answer the first time.
        """
        by_hand = [_by_hand(place) for place in self._settings.target]
        targets = list({each.place: each for each in [*by_hand, *read_targets(self.targets)]}.values())
        if not self._names:
            works = self._works(targets, [])
            jobs, nodes, notes = self._jobs_and_nodes() if environment.ray_address() else ([], [], [])
            return Snapshot(_clock(), works, jobs, nodes, notes)
        folders, jobs, wanted = [], [], list[Target]()
        for name in self._names:
            matching = [each for each in targets if _is_of(each.folder, each.run, name)]
            wanted += matching
            if is_run(folder := expanded(name)):
                folders.append(folder)
            elif not matching and not any(_is_of(key.folder, key.run, name) for key in self._seen):
                jobs.append(_job(name))
        return Snapshot(_clock(), self._with_ended(self._works(list(dict.fromkeys(wanted)), folders)), jobs, [])

    def _works(self, targets: Sequence[Target], folders: Sequence[Path]) -> list[WorkState]:
        """What targets work on, and the runs of folders, also those that no target is of; the gravest first."""
        replies = [(reply, _figures(reply)) for reply in ask(targets, self._reader)]
        groups, now = grouped(replies), time.time()
        for folder in folders:
            if not any(key.kind in _TRAINS and _is_of(key.folder, "", str(folder)) for key in groups):
                absolute = folder.absolute()
                groups[Key(_kind(folder), absolute.name, str(absolute))] = []
        works = [work_state(key, heard, _files(key, now), now) for key, heard in groups.items()]
        return sorted(works, key=lambda work: (OUTCOMES.index(work.outcome), work.run, work.kind))

    def _with_ended(self, works: list[WorkState]) -> list[WorkState]:
        """The works, and those seen before whose processes have taken their files away: they ended in order."""
        now = {Key(work.kind, work.run, work.folder): work for work in works}
        ended = [_ended(work) for key, work in self._seen.items() if key not in now]
        self._seen |= now
        return works + ended

    def _jobs_and_nodes(self) -> tuple[list[JobState], list[NodeState], list[str]]:
        """The cluster's, which is not asked at each look; and why they are of before, where it does not answer now."""
        notes: list[str] = []
        if self._cluster is None or time.monotonic() - self._cluster[0] > _CLUSTER_SECONDS:
            try:
                cluster = RayJobs()
                self._cluster = time.monotonic(), cluster.all(), cluster.nodes()
            except (UserError, CommandFailed) as error:
                if self._cluster is None:
                    raise
                notes.append(error.what if isinstance(error, UserError) else str(error))
        return self._cluster[1], self._cluster[2], notes


def _by_hand(place: str) -> Target:
    scheme = "https" if place.startswith("https://") else "http"
    return Target(place.removeprefix("http://").removeprefix("https://"), scheme)


def _figures(reply: Reply) -> Figures:
    try:
        return parse_page(reply.page or "")
    except ValueError:
        return Figures()


def _is_of(folder: str, run: str, name: str) -> bool:
    """Whether what works on `folder`, of a run's or store's name, is what `name` means: a path, a URL, or that name."""
    path = expanded(name)
    names = (name.rstrip("/"), str(path.absolute()), str(path.resolve()))
    return name == run or (bool(folder) and folder.rstrip("/") in names)


def _files(key: Key, now: float) -> Files | None:
    """What the folder of a run says; None where it is none that this machine sees."""
    folder = Path(key.folder)
    try:
        if key.kind not in _TRAINS or not key.folder or not is_run(folder):
            return None
        problems = log_problems(key.run, key.folder, read_log(folder / LOG, now), PRESSING_SECONDS)
        return Files(run_state(folder, now), last_event(folder), newest_attempt(folder) or None, problems)
    except (UserError, OSError):
        return None


def _kind(folder: Path) -> str:
    return "finetune" if read_settings_file(folder).settings.get("init") else "pretrain"


def _job(name: str) -> JobState:
    """The job of that id. Raises UserError where there is none, or nobody to ask."""
    if "/" in name or Path(name).exists():
        remedy = "name a folder that pretrain or finetune printed, or a store while it is sharded into"
        raise UserError("there is no run in this folder, and nothing works on it", name, remedy)
    return RayJobs().state(name)


def _ended(work: WorkState) -> WorkState:
    is_done = work.videos is not None and work.videos.remaining == 0
    return replace(work, outcome="finished" if is_done else "stopped", reason="its process has ended", eta_seconds=None)


def _clock() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
