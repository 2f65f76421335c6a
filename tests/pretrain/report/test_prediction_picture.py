"""The picture of a prediction: its size follows what it shows, and its names are written whatever their script."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.evaluation.predict import Prediction
from pretrain.report.class_names import file_label
from pretrain.report.prediction_picture import prediction_picture, write_prediction_picture
from sharding.base.errors import UserError


def prediction(clips: int, frames: int, name: str = "look/holiday.mp4", classes: int = 8) -> Prediction:
    sheet = np.full((clips, frames, 112, 112, 3), 200, np.uint8)
    scores = np.linspace(1, 0, classes, dtype=np.float32) / classes * 2
    names = ["abseiling a very high wall with a rope", "$x^2$", *(f"class {number}" for number in range(2, classes))]
    return Prediction(name, names, scores, scores, clips, False, sheet, [float(number) for number in range(clips)])


def test_rows_are_clips_and_frames_keep_their_shape() -> None:
    one, ten = (Image.open(io.BytesIO(prediction_picture(prediction(clips, 8), 5))) for clips in (1, 10))
    assert one.width == ten.width and ten.height > 2 * one.height
    pixels = np.asarray(ten.convert("RGB"))
    grey = (pixels == 200).all(-1)
    rows, columns = grey.any(1), grey.any(0)
    starts = [int((np.diff(np.concatenate([[0], line.astype(int)])) == 1).sum()) for line in (rows, columns)]
    assert starts == [10, 8], "a frame beside a frame, a clip below a clip"
    assert grey.sum() / (rows.sum() * columns.sum()) > 0.98
    right = pixels[:, columns.nonzero()[0].max() + 20 :]
    assert (right[..., 2].astype(int) - right[..., 0] > 100).any(), "a bar"


def test_a_name_in_any_script_is_a_title() -> None:
    assert file_label("urlaub ä.mp4", 70).text == "urlaub ä.mp4"
    assert len(file_label("a" * 200, 70).text) == 70
    assert "\x1b" not in file_label("\x1b]0;x\x07.mp4", 70).text
    assert prediction_picture(prediction(2, 4, "\U00013080\u5f13.mp4"), 5).startswith(b"\x89PNG")


def test_what_cannot_be_written_is_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "new" / "look.png"
    write_prediction_picture(prediction(2, 4), 3, file)
    assert Image.open(file).format == "PNG"
    with pytest.raises(UserError, match="cannot be written to"):
        write_prediction_picture(prediction(2, 4), 3, file / "below.png")
