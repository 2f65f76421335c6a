"""Two-stream fusion: the scores of two networks for the same videos, added."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sharding.errors import UserError
from sharding.record import from_parquet
from sharding.settings import Settings

Scores = NDArray[np.float32]


class FuseSettings(Settings):
    """With which other network's evaluation, and how. The defaults are I3D's; VMZ has scores and a weight of 0.6."""

    run: Annotated[str, Field(description="the other run's folder, evaluated on the same videos")]
    of: Annotated[Literal["logits", "scores"], Field(description="what is added: logits, or softmax scores")] = "logits"
    weight: Annotated[float, Field(ge=0, le=1, description="of this run's; the other's is the rest")] = 0.5


def fused(own: Scores, other: Scores, weight: float) -> Scores:
    """weight · own + (1 - weight) · other, [videos, classes]. Source: I3D, section 3.4; VMZ's fusion script."""
    return weight * own + (1 - weight) * other


def best_rank(scores: Scores, labels: Sequence[int]) -> int:
    """Rank (0 is the top) of the best-placed of a video's labels: below k it is right at k (video@k, Hit@k)."""
    order = np.argsort(-scores, kind="stable").tolist()
    return min(order.index(label) for label in labels)


def fuse_evaluation(own: Path, settings: FuseSettings) -> dict[str, Any]:
    """video1 and video5 of an evaluated run's scores fused with another's.

    Raises UserError if one is not evaluated, or not on the same videos and classes.
    """
    tables = [_read(folder) for folder in (own, Path(settings.run))]
    keys = [table["key"] for table in tables]
    if sorted(keys[0]) != sorted(keys[1]):
        raise _unlike(settings.run, f"it was evaluated on {len(keys[1])} other videos than the {len(keys[0])} here")
    scores = [np.asarray(table[settings.of], np.float32) for table in tables]
    if scores[0].shape != scores[1].shape:
        raise _unlike(settings.run, f"it tells {scores[1].shape[1]} classes apart, not {scores[0].shape[1]}")
    places = {key: place for place, key in enumerate(keys[1])}
    both = fused(scores[0], scores[1][[places[key] for key in keys[0]]], settings.weight)
    ranks = [best_rank(row, labels) for row, labels in zip(both, tables[0]["labels"], strict=True)]
    right = {f"video{k}": sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5)}
    return {"run": settings.run, "of": settings.of, "weight": settings.weight, **right}


def _read(folder: Path) -> dict[str, list[Any]]:
    path = folder / "evaluation" / "videos.parquet"
    try:
        return from_parquet(path.read_bytes(), ["key", "labels", "logits", "scores"]).to_pydict()
    except (OSError, ValueError) as error:
        remedy = f"evaluate it first: reelscale evaluate CONFIG run={folder}"
        raise UserError(f"no evaluation to fuse ({error})", str(path), remedy) from error


def _unlike(run: str, what: str) -> UserError:
    return UserError(f"{what}, so there is nothing to add", run, "evaluate both runs on the same store and split")
