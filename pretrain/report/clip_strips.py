"""The clips a report shows: errors first, the most confident at the top, each a strip of its frames as a JPEG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.report.run_data import ClipThumbnails, Evaluation
from pretrain.scoring.confusion import confident_errors

SHOWN = 24  # the most clips of a page
_ACROSS = 6  # frames of a strip
_HEIGHT = 96  # of a strip, in pixels, at most
_WIDTH = 720
_QUALITY = 78
_GAP = (128, 136, 144)  # between frames: a grey for light and dark pages


def clips_shown(evaluation: Evaluation, clips: ClipThumbnails) -> list[int]:
    """Which of the kept clips the page shows: errors first, the most confident at the top, then others."""
    truths, predictions = (
        [values[row] for row in clips.rows] for values in (evaluation.truths, evaluation.predictions)
    )
    scores = [evaluation.scores[row] for row in clips.rows]
    errors = confident_errors(predictions, scores, [(truth,) for truth in truths])[:SHOWN]
    others = [place for place in range(len(clips.rows)) if truths[place] == predictions[place]]
    count = min(len(others), SHOWN - len(errors))
    return errors + [others[number * len(others) // count] for number in range(count)]


def strip_jpeg(frames: NDArray[np.uint8]) -> bytes:
    """A JPEG of frames side by side, spread over the clip; `frames`: uint8 F H W 3, RGB."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), _ACROSS)).round().astype(int)]
    gap = np.full((chosen.shape[1], max(1, chosen.shape[2] // 40), 3), _GAP, np.uint8)
    parts = [part for picture in chosen for part in (picture, gap)][:-1]
    strip = Image.fromarray(np.concatenate(parts, axis=1))
    strip.thumbnail((_WIDTH, _HEIGHT))
    buffer = io.BytesIO()
    strip.save(buffer, format="jpeg", quality=_QUALITY, optimize=True)
    return buffer.getvalue()
