"""A run's figures on Weights & Biases."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pretrain.tracking.settings import WandbSettings
from sharding.base.errors import UserError

_BEGIN_SECONDS = 30.0


class WandbTracker:
    """One run of W&B for a run, however often that is started. Its figures are over `step`, as `train/loss`.

    W&B keeps what it has: steps that a run takes again after an interruption lie on those from before.
    """

    name = "Weights & Biases"

    def __init__(self, settings: WandbSettings, folder: Path, run_id: str, config: dict[str, Any]) -> None:
        """Begins, or goes on with, W&B's run `run_id`. Raises UserError without a key, or with one that is refused."""
        import wandb

        quiet = wandb.Settings(init_timeout=_BEGIN_SECONDS, console="off", silent=True, save_code=False)
        self._run: Any = None
        self._error: Exception | None = None
        name = settings.name or folder.resolve().name
        goes_on: Literal["allow"] | None = "allow" if settings.mode == "online" else None
        try:
            with _no_terminal():
                self._run = wandb.init(
                    project=settings.project, entity=settings.entity, name=name, tags=settings.tags, id=run_id,
                    resume=goes_on, mode=settings.mode, dir=folder, config=config, allow_val_change=True,
                    settings=quiet,
                )  # fmt: skip
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise UserError(
                f"Weights & Biases refuses the run: {error}",
                "tracking.wandb",
                "set WANDB_API_KEY where the first rank runs, or `wandb login` there, or tracking.wandb.mode=offline",
            ) from error
        except wandb.errors.Error as error:
            self._error = error  # it is out of reach: told when the first figures come, as of one that breaks off
            return
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def event(self, kind: str, values: dict[str, Any]) -> None:
        """See `Tracker`."""
        if self._error is not None:
            raise self._error
        figures = {name: value for name, value in values.items() if isinstance(value, int | float)}
        self._run.log({"step": figures.pop("step")} | {f"{kind}/{name}": value for name, value in figures.items()})

    def rewind(self, step: int) -> None:
        """See `Tracker`."""

    def close(self, succeeded: bool) -> None:
        """See `Tracker`."""
        if self._run is not None:
            self._run.finish(exit_code=0 if succeeded else 1)


@contextmanager
def _no_terminal() -> Iterator[None]:
    """Inside the `with`, no library asks the user anything."""
    before = sys.stdin
    with open(os.devnull) as nothing:  # noqa: PTH123
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before
