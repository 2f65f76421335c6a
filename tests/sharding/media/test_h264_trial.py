"""The tiny video by which FFmpeg is tried."""

from __future__ import annotations

import dataclasses

import pytest

from sharding.media import h264_trial
from sharding.media.h264_trial import try_h264


def test_this_ffmpeg_is_good() -> None:
    trial = try_h264()
    assert trial.is_good and trial.encoded == trial.decoded == 8 and trial.difference < 4
    assert not dataclasses.replace(trial, decoded=7).is_good
    assert not dataclasses.replace(trial, difference=50.0).is_good


def test_an_ffmpeg_without_an_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h264_trial, "x264_options", lambda *_: {"preset": "no such"})
    with pytest.raises(Exception, match=r"."):
        try_h264()
