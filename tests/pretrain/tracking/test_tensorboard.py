"""TensorBoard's files, read by TensorBoard itself: each step once, however often it was taken."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from pretrain.tracking.tensorboard import TensorBoardTracker
from tests.pretrain.conftest import Finished, end, start


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder: of each tag its steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(each.step, each.value) for each in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_steps_that_are_taken_anew_are_there_once(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path, {"seed": 0})
    tracker.rewind(0)
    for step in range(1, 6):
        tracker.event("train", {"step": step, "loss": 1.0, "top1": None})
    tracker.event("validation", {"step": 5, "clip1": 0.5})
    tracker.rewind(3)
    for step in range(4, 7):
        tracker.event("train", {"step": step, "loss": 2.0})
    tracker.close(succeeded=True)
    losses = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]
    assert scalars(tmp_path) == {"train/loss": losses, "validation/clip1": []}


@pytest.mark.cluster
def test_a_run_that_is_killed_and_goes_on(finished: Finished, tmp_path: Path) -> None:
    run, log, asked = tmp_path / "run", tmp_path / "log", "tracking.tensorboard=true"
    process = start(finished.recipe, run, log, asked, alone=True)
    deadline = time.monotonic() + 200
    while not log.read_text().count("step 7/"):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert end(process) == -signal.SIGKILL
    assert end(start(finished.recipe, run, log, asked, alone=True)) == 0, log.read_text()
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shown = scalars(run / "tensorboard")
    for kind, name in (("train", "loss"), ("train", "clips_per_second"), ("validation", "clip1")):
        wanted = [(event["step"], event[name]) for event in events if event["event"] == kind]
        assert [step for step, _ in shown[f"{kind}/{name}"]] == [step for step, _ in wanted]
        assert [value for _, value in shown[f"{kind}/{name}"]] == pytest.approx([value for _, value in wanted])
    assert "changed since the run's last start" not in log.read_text()
