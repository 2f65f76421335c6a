"""A protocol of evaluation: which clips and crops of a video are scored, and how their scores become the video's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

Averaged = Literal["scores", "logits"]
Pooling = Literal["convolutional", "average"]


@dataclass(frozen=True)
class Protocol:
    """So many clips of each video, `crops` of each clip, squares of `crop` pixels; trained was with `trained_crop`.

    average: what is averaged over all of them, scores (after the softmax) or logits. pooling: what becomes of a crop
    that is larger than the trained one: convolutional, each place of the trained window on the last map is classified,
    and the places are averaged as clips are; or average, the whole map is pooled.
    """

    clips: int
    crops: int
    crop: int
    trained_crop: int
    pooling: Pooling = "convolutional"
    average: Averaged = "scores"

    @property
    def has_places(self) -> bool:
        """Whether a crop is classified at several places."""
        return self.crop > self.trained_crop and self.pooling == "convolutional"

    @property
    def name(self) -> str:
        """A file's name for it: another one for each protocol of a network, what is usual left out."""
        parts = [f"{self.clips}-clips"]
        if self.crops > 1:
            parts.append(f"{self.crops}-crops")
        if self.crop > self.trained_crop:
            parts.append(f"crop-{self.crop}" + ("" if self.has_places else "-pooled"))
        if self.average == "logits":
            parts.append("logits")
        return "-".join(parts)

    @property
    def words(self) -> str:
        """It in a line, for people."""
        crops = "the centre crop" if self.crops == 1 else f"{self.crops} crops"
        larger = ""
        if self.crop > self.trained_crop:
            larger = ", fully convolutional" if self.has_places else ", all of it pooled"
        what = "softmaxes" if self.average == "scores" else "logits"
        plural = "s" if self.clips > 1 else ""
        return f"{self.clips} clip{plural} x {crops} of {self.crop} pixels{larger}; mean of {what}"

    @property
    def overrides(self) -> str:
        """It as settings of the command `evaluate`, what is usual left out."""
        settings = {"clips": self.clips}
        settings |= {"crops": self.crops} if self.crops > 1 else {}
        settings |= {"crop": self.crop} if self.crop > self.trained_crop else {}
        words = [f"{name}={value}" for name, value in settings.items()]
        if self.crop > self.trained_crop and not self.has_places:
            words.append("pooling=average")
        return " ".join(words + (["average=logits"] if self.average == "logits" else []))

    @property
    def identity(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class VideoAverage:
    """A video's scores and logits [classes], and of each clip, in its centre crop, the scores [clips, classes]."""

    scores: Tensor
    logits: Tensor
    clip_scores: Tensor


def average_views(logits: Tensor, average: Averaged) -> VideoAverage:
    """What logits of a video's views come to, [crops, clips, places, classes], the centre crop in the middle.

    Averaged are softmaxes, of each place alone (R(2+1)D's protocol, VMZ), or logits (I3D's), of which scores are then
    the softmax. A clip is scored by its centre crop alone, so that clip@1 is the same figure whatever the crops.
    """
    centre = logits[len(logits) // 2]
    mean = logits.mean((0, 1, 2))
    if average == "scores":
        return VideoAverage(logits.softmax(-1).mean((0, 1, 2)), mean, centre.softmax(-1).mean(1))
    return VideoAverage(mean.softmax(-1), mean, centre.mean(1).softmax(-1))
