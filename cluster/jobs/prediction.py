"""The job `predict`: videos scored one by one in this process, and a picture of each."""

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from cluster.launch.signals import raise_if_interrupted
from cluster.terminal.progress import progress
from pretrain.evaluation.predict import Prediction, Predictions
from pretrain.evaluation.predict_settings import PredictSettings
from pretrain.evaluation.trained_network import open_network
from pretrain.evaluation.video_files import VideoFile, videos_at
from sharding.base.errors import UserError
from sharding.base.printable import visible
from sharding.base.text import file_name
from sharding.base.user_paths import absolute, require_writable


def run_prediction(
    weights: str, places: Sequence[str], settings: PredictSettings, top: int, picture: str | None
) -> dict[str, Any]:
    """Predict each video and draw the pictures; returns the likeliest `top` classes of each, as JSON.

    Raises UserError for what cannot be predicted by or from, before any video is read; a bad video among others is
    named, and has a `failure` in what is returned.
    """
    videos = videos_at(places)
    files = None if picture is None else picture_files(videos, picture)
    trained = open_network(weights)
    predictions = Predictions(trained, settings, with_sheets=files is not None)
    for note in predictions.notes:
        print(visible(f"note: {note}"), file=sys.stderr)
    rows = []
    with progress("predict", len(videos)) as advance, closing(predictions.of(videos)) as results:
        for number, prediction in enumerate(results):
            raise_if_interrupted()
            row = _row(prediction, top)
            if prediction.failure is not None:
                print(visible(f"failed: {prediction.video}: {prediction.failure}"), file=sys.stderr)
            elif files is not None:
                row["picture"] = _drawn(prediction, top, files[number])
            rows.append(row)
            advance(1)
    return {
        "weights": weights,
        "step": trained.step,
        "network": trained.model.label,
        "classes": len(trained.classes),
        "failed": sum("failure" in row for row in rows),
        "notes": predictions.notes,
        "videos": rows,
    }


def picture_files(videos: Sequence[VideoFile], picture: str) -> list[Path]:
    """The PNG of each video: `picture` itself for a single one, if it is named like one; else files in that folder.

    Raises UserError for a name of one PNG for several videos, and for a place that cannot be written to.
    """
    path = Path(absolute(picture))
    single = path.suffix.lower() == ".png"
    if single and len(videos) > 1:
        what = f"one picture is named for {len(videos)} videos"
        raise UserError(what, f"--picture {picture}", "name a folder: each video gets a picture in it")
    require_writable(path.parent if single else path, f"--picture {picture}")
    if single:
        return [path]
    files: dict[Path, None] = {}
    for video in videos:
        # Of a video in a folder's folders the name tells which, too; what a file system may not take is left out.
        stem = file_name(video.uri, 150) or "video"
        names = (path / f"{stem}{again}.png" for again in ("", *(f"-{number}" for number in range(2, len(videos) + 2))))
        files[next(name for name in names if name not in files)] = None
    return list(files)


def _drawn(prediction: Prediction, top: int, file: Path) -> str:
    from pretrain.report.prediction_picture import write_prediction_picture  # matplotlib takes a second to load

    write_prediction_picture(prediction, top, file)
    return str(file)


def _row(prediction: Prediction, top: int) -> dict[str, Any]:
    if prediction.failure is not None:
        return {"video": prediction.video, "failure": prediction.failure}
    numbers = {name: number for number, name in enumerate(prediction.classes)}
    return {
        "video": prediction.video,
        "clips": prediction.clips,
        "shorter_than_a_clip": prediction.looped,
        "top": [
            {"class": name, "number": numbers[name], "probability": probability}
            for name, probability in prediction.top(top)
        ],
    }
