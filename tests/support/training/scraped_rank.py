"""A rank that writes down what a scrape of it finds: as it begins to train, and when all is saved.

python -m tests.support.training.scraped_rank SETTINGS OUT: SETTINGS, a TrainSettings' dump as JSON; the rank is that of
the environment, and OUT.begin and OUT.end are what it would serve.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest


def main(settings_file: Path, out: Path) -> None:
    """Train, and write."""
    from pretrain.checkpoints.checkpointer import Checkpointer
    from pretrain.settings import TrainSettings
    from pretrain.training import trainer
    from pretrain.training.preflight import preflight

    finish = Checkpointer.finish

    def finished(self: Any) -> None:
        finish(self)
        out.with_suffix(".end").write_bytes(generate_latest())

    Checkpointer.finish = finished  # type: ignore[method-assign]  # what comes last while a run is served
    settings = TrainSettings.model_validate(json.loads(settings_file.read_text()))
    resolved = preflight(settings, 2, "tiny.yaml")
    trainer.train(resolved, on_start=lambda rank: out.with_suffix(".begin").write_bytes(generate_latest()) and None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
