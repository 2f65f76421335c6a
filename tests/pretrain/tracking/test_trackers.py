"""Trackers beside a run: handed every event in order, and never waited for, whatever they do."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pretrain.tracking import trackers as tracking
from pretrain.tracking.settings import TrackingSettings, WandbSettings
from pretrain.tracking.trackers import InBackground, require_packages, trackers
from sharding.base.errors import UserError


class Recorded:
    """A tracker that keeps what it gets; it waits for `may_go`, and raises at a step."""

    name = "Recorded"

    def __init__(self, raises_at: int | None = None) -> None:
        self.got: list[tuple[Any, ...]] = []
        self.may_go, self._raises_at = threading.Event(), raises_at

    def event(self, kind: str, values: dict[str, Any]) -> None:
        assert self.may_go.wait(60)
        if values["step"] == self._raises_at:
            raise OSError("No space left on device")
        self.got.append((kind, values["step"]))

    def rewind(self, step: int) -> None:
        self.got.append(("rewind", step))

    def close(self, succeeded: bool) -> None:
        self.got.append(("close", succeeded))


def test_all_is_handed_over_in_order() -> None:
    tracker = Recorded()
    follower = InBackground(tracker)
    follower.rewind(0)
    for step in (1, 2):
        follower.event("train", {"step": step})
    follower.rewind(1)
    follower.event("validation", {"step": 2})
    assert tracker.got in ([], [("rewind", 0)])  # nobody has waited for it
    tracker.may_go.set()
    follower.close(succeeded=True)
    assert tracker.got == [("rewind", 0), ("train", 1), ("train", 2), ("rewind", 1), ("validation", 2), ("close", True)]


def test_one_that_raises_gets_no_more(run_log: pytest.LogCaptureFixture) -> None:
    tracker = Recorded(raises_at=2)
    tracker.may_go.set()
    follower = InBackground(tracker)
    for step in (1, 2, 3):
        follower.event("train", {"step": step})
    follower.close(succeeded=True)
    assert tracker.got == [("train", 1)]
    assert list(dict.fromkeys(run_log.messages)) == [
        "Recorded takes no figures: No space left on device; training goes on without it"
    ]


def test_one_that_hangs_is_left(run_log: pytest.LogCaptureFixture) -> None:
    tracker = Recorded()
    follower = InBackground(tracker, waiting=3)
    for step in range(1, 10):
        follower.event("train", {"step": step})
    follower.close(succeeded=True, seconds=0.1)
    assert [message.partition(":")[0] for message in dict.fromkeys(run_log.messages)] == [
        "Recorded is too slow",
        "Recorded has not taken all figures within 0 s",
    ]
    tracker.may_go.set()


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    require_packages(TrackingSettings())
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda package: None)
    require_packages(TrackingSettings())
    with pytest.raises(UserError, match="the package tensorboard is not installed"):
        require_packages(TrackingSettings(tensorboard=True))
    with pytest.raises(UserError, match="the package wandb is not installed") as error:
        require_packages(TrackingSettings(wandb=WandbSettings(project="p")))
    assert error.value.where == "tracking.wandb" and "pip install 'reelscale[wandb]'" in error.value.remedy


@pytest.mark.parametrize("begins", [True, False])
def test_a_run_that_has_trained_goes_on_without(
    begins: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, run_log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda package: None)
    asked = trackers(TrackingSettings(tensorboard=True), tmp_path, "id", {}, begins)
    if begins:
        with pytest.raises(UserError), asked:
            pass
    else:
        with asked as ready:
            assert ready == []
        assert "the package tensorboard is not installed" in run_log.text and "goes on without it" in run_log.text
