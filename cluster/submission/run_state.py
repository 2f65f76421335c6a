"""A run's state by the files in its folder, without Ray; and a request to stop, left there."""

import time
from dataclasses import dataclass
from pathlib import Path

from cluster.launch.signals import raise_if_interrupted
from pretrain.checkpoints.folder import committed
from pretrain.report.run_data import Event, read_metrics
from pretrain.resilience.stop_signal import STOP_FILE
from pretrain.run_settings import SETTINGS, read_settings_file
from sharding.base.user_paths import writing

LOG, METRICS = "train.log", "metrics.jsonl"
SILENT_SECONDS = 300.0  # without a word, after which a run is not called running
_SAVED = "with everything saved"  # what the last line of a log says of a run that was stopped
_EARLY = "ended early at step"
_LOOK_SECONDS = 0.2
_TAIL_BYTES = 4096
_METRICS_BYTES = 2**18  # of the newest events, of which one is wanted


@dataclass(frozen=True)
class RunState:
    """A run: `outcome` is finished, stopped, running or silent (killed, or long without a word).

    `step` is the last one logged or saved, `of` that of its end, `loss` that of the last logged step; `checkpoint` is
    the newest one's step; ages are in seconds.
    """

    run: str
    outcome: str
    step: int
    of: int | None
    loss: float | None
    checkpoint: int | None
    checkpoint_age_seconds: float | None
    last_word_seconds: float | None
    asked_to_stop: bool


def is_run(folder: Path) -> bool:
    """Whether the folder is a run's."""
    return (folder / SETTINGS).is_file()


def run_state(folder: Path, now: float | None = None) -> RunState:
    """The state of a run. Raises UserError if the folder is no run's, or its settings cannot be read."""
    now = time.time() if now is None else now
    derived = read_settings_file(folder).derived
    of = derived.get("steps") if isinstance(derived.get("steps"), int) else None
    last = last_event(folder)
    newest = max(committed(folder), key=_step, default=None)
    checkpoint = None if newest is None else _step(newest)
    step = last.get("step", 0)
    words = [_changed(folder / name) for name in (LOG, METRICS)]
    last_word = max((changed for changed in words if changed is not None), default=None)
    age = None if last_word is None else max(0.0, now - last_word)
    changed = None if newest is None else _changed(newest)
    return RunState(
        run=str(folder),
        outcome=outcome_of(checkpoint, of, _last_line(folder / LOG), age),
        step=max(step, checkpoint or 0),
        of=of,
        loss=last.get("loss"),
        checkpoint=checkpoint,
        checkpoint_age_seconds=None if changed is None else round(max(0.0, now - changed), 1),
        last_word_seconds=None if age is None else round(age, 1),
        asked_to_stop=(folder / STOP_FILE).exists(),
    )


def last_event(folder: Path) -> Event:
    """The last logged step's figures, as they are in the run's metrics; {} where there is none."""
    train, _, _ = read_metrics(folder / METRICS, _METRICS_BYTES)
    return train[-1] if train else {}


def outcome_of(checkpoint: int | None, of: int | None, last_line: str, age: float | None) -> str:
    """A run's outcome: by its newest checkpoint, the last line of its log, and the seconds since its last word."""
    if checkpoint is not None and (of is None or checkpoint >= of):
        return "finished"
    if _EARLY in last_line:
        return "finished"
    if _SAVED in last_line:
        return "stopped"
    return "running" if age is not None and age < SILENT_SECONDS else "silent"


def stop_run(folder: Path, seconds: float) -> RunState:
    """Ask a run to save and stop, and wait until it has, at most `seconds`; its state then.

    One that does not answer is asked no more: the request would stop the run's next start. Raises UserError where the
    folder cannot be written to.
    """
    request = folder / STOP_FILE
    with writing(folder, "the run's folder"):
        request.touch()
    deadline = time.monotonic() + seconds
    while request.exists() and time.monotonic() < deadline:
        raise_if_interrupted()
        if run_state(folder).outcome == "finished":
            break
        time.sleep(_LOOK_SECONDS)
    with writing(folder, "the run's folder"):
        request.unlink(missing_ok=True)
    return run_state(folder)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("step-")[2])


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line.strip()), "")
