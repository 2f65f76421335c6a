"""A run's folder: its settings, classes, log and metrics; and whether it may go on with the settings at hand."""

import copy
import json
import logging
import math
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.checkpoints.history import HISTORY, cut_history
from pretrain.data.sources import DataSettings
from pretrain.run_settings import (
    CLASSES,
    SETTINGS,
    Recipe,
    RunSettings,
    identity_changes,
    read_classes_file,
    read_settings_file,
)
from pretrain.settings import TrainSettings
from pretrain.tracking.trackers import InBackground, trackers
from sharding.base import environment
from sharding.base.atomic import append_line, atomic_write_text
from sharding.base.errors import UserError
from sharding.base.printable import visible, visible_lines
from sharding.base.settings import validate
from sharding.base.text import WRITER
from sharding.base.user_paths import writing

log = logging.getLogger("reelscale")

_INFINITE = (math.inf, -math.inf)


class Run:
    """The folder of one run. Only rank 0 writes into it."""

    def __init__(self, folder: Path, writes: bool) -> None:
        self.folder, self._writes = folder, writes
        self.before: dict[str, Any] | None = None  # the settings of its last start, known once it begins
        self._trackers: list[InBackground] = []
        self._failing = False  # whether the last event could not be written

    def versions(self, data: DataSettings) -> list[str] | None:
        """The index versions that the run began with of these stores; None if it has not, or with others."""
        file = self.folder / SETTINGS
        if not file.exists():
            return None
        began = read_settings_file(self.folder).began_with(str(file))
        now = data.model_dump(mode="json")
        return began["index"] if all(began.get(field) == now[field] for field in ("store", "mix")) else None

    def require_same(self, settings: TrainSettings, classes: list[str], index: list[str]) -> RunSettings | None:
        """What the folder says of the run as it began, None if it has not. Raises UserError if it holds another run."""
        if not (self.folder / SETTINGS).exists():
            return None
        began = read_settings_file(self.folder)
        _check_identity(self.folder, began.identity, run_identity(settings, classes, index))
        return began

    def begin(
        self,
        settings: TrainSettings,
        classes: list[str],
        index: list[str],
        derived: dict[str, Any],
        stored: dict[str, Any] | None = None,
        recipe: Recipe = Recipe(),
    ) -> None:
        """Write the settings and the log's head. Raises UserError if the folder, here, holds another run.

        `stored`: how its videos are stored (`Sources.stored`), by which others are prepared for its network.
        """
        identity = run_identity(settings, classes, index)
        began, threads = self.require_same(settings, classes, index), torch.get_num_threads()
        run_id = secrets.token_hex(8)
        if began is not None:
            threads, run_id, self.before = began.threads or threads, began.id or run_id, began.settings
            stored = stored or began.stored
        if not self._writes:
            return
        whole = RunSettings(
            settings=settings.model_dump(mode="json"),
            identity=identity,
            derived=derived,
            threads=threads,
            id=run_id,
            stored=stored,
            recipe=recipe.name,
            expected=recipe.expected,
        )
        with writing(self.folder, "run"):
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self.folder / CLASSES, json.dumps(classes, indent=1))
            atomic_write_text(self.folder / SETTINGS, json.dumps(whole.model_dump(), indent=1))

    @property
    def threads(self) -> int:
        """How many the first rank had to compute with when the run began."""
        return read_settings_file(self.folder).threads or torch.get_num_threads()

    @contextmanager
    def tracked(self, settings: TrainSettings) -> Iterator[None]:
        """Inside the `with`, the trackers of `settings.tracking` get each event, too. See `trackers` for its errors."""
        if not (self._writes and settings.tracking.wanted):
            yield
            return
        run_id, config = read_settings_file(self.folder).id, settings.model_dump(mode="json")
        begins = not Checkpointer(self.folder, settings.checkpoint).has_any()
        with trackers(settings.tracking, self.folder, run_id, config, begins) as self._trackers:
            yield
        self._trackers = []

    def event(self, kind: str, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, and tell trackers; numbers that are not finite become null."""
        if not self._writes:
            return
        values = {name: None if value != value or value in _INFINITE else value for name, value in values.items()}
        for tracker in self._trackers:
            tracker.event(kind, values)
        try:
            append_line(self.folder / HISTORY, json.dumps({"event": kind, **values}))
        except OSError as error:
            if not self._failing:
                log.warning("%s cannot be written: %s; training goes on", HISTORY, error)
            self._failing = True
        else:
            self._failing = False

    def keep_up_to(self, step: int) -> None:
        """Have no line of metrics.jsonl be of a step after this one, from which the run goes on."""
        if not self._writes:
            return
        for tracker in self._trackers:
            tracker.rewind(step)
        try:
            cut_history(self.folder, step)
        except OSError as error:
            log.warning("%s cannot be cut at step %d: %s; training goes on", HISTORY, step, error)

    def log_to_file(self) -> None:
        """Send log lines to train.log and, unless something else follows that file, to standard output."""
        log.setLevel(logging.INFO if self._writes else logging.WARNING)
        log.propagate = False
        for handler in list(log.handlers):
            log.removeHandler(handler)
            handler.close()
        if self._writes:
            with writing(self.folder, "run"):
                self.folder.mkdir(parents=True, exist_ok=True)
                file = logging.FileHandler(self.folder / "train.log", encoding="utf-8")
            file.setFormatter(_Plain("%(asctime)s %(message)s", "%H:%M:%S"))
            log.addHandler(file)
        if not environment.is_followed():
            console = logging.StreamHandler(sys.stdout)
            console.setFormatter(_Plain("%(asctime)s %(message)s", "%H:%M:%S"))
            log.addHandler(console)


class _Plain(logging.Formatter):
    """Names in messages do nothing to the log or the terminal, and one that is an argument stays on its line."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            record = copy.copy(record)
            record.args = tuple(visible(each) if isinstance(each, str | Path) else each for each in record.args or ())
        return visible_lines(super().format(record))


def run_identity(settings: TrainSettings, classes: list[str], index: list[str]) -> dict[str, Any]:
    """What may not change while a run goes on: its samples, their order and views, its network."""
    return {
        "seed": settings.seed,
        "lanes": settings.lanes,
        "lane_batch": settings.lane_batch,
        "data": {
            **settings.data.model_dump(mode="json", exclude={"loader", "reading", "patience_seconds"}),
            "index": index,
        },
        "model": settings.model.model_dump(mode="json"),
        "loss": settings.loss.model_dump(mode="json"),
        "init": settings.init.model_dump(mode="json", exclude_defaults=True) if settings.init else None,
        "classes": classes,
    }


def read_settings(folder: Path) -> tuple[TrainSettings, list[str]]:
    """The settings and class names of an existing run.

    Raises UserError if the folder is none, or a file in it is damaged or another version's.
    """
    where, known = str(folder / SETTINGS), read_settings_file(folder).settings
    try:
        settings = validate(TrainSettings, known, where)
    except UserError as error:
        raise UserError(f"the run's {SETTINGS} does not fit this version: {error.what}", where, WRITER) from error
    return settings, read_classes_file(folder)


def _check_identity(folder: Path, began: dict[str, Any], now: dict[str, Any]) -> None:
    changes = identity_changes(began, now)
    if changes:
        raise UserError(
            f"the folder holds another run ({changes})",
            str(folder),
            "give this one a folder of its own: run=runs/NAME",
        )
