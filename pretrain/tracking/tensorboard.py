"""TensorBoard's files of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class TensorBoardTracker:
    """Writes a run's figures by step, as `train/loss`; those of steps that a run went back behind are taken back."""

    name = "TensorBoard"

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self._folder, self._config, self._step = folder, config, 0
        self._writer: Any = None

    def event(self, kind: str, values: dict[str, Any]) -> None:
        """See `Tracker`."""
        writer = self._open()
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float):
                writer.add_scalar(f"{kind}/{name}", value, values["step"])

    def rewind(self, step: int) -> None:
        """See `Tracker`. TensorBoard leaves out what files before the next one have of later steps."""
        self._end()
        self._step = step

    def close(self, succeeded: bool) -> None:
        """See `Tracker`."""
        self._end()

    def _open(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._step + 1, flush_secs=10)
            text = yaml.safe_dump(self._config, sort_keys=False, allow_unicode=True)
            self._writer.add_text("settings", "    " + text.replace("\n", "\n    "), self._step + 1)
        return self._writer

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
