"""Scores a video by a network, once its clips are decoded."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.data.device.tensors import made_batch
from pretrain.data.device.transforms import network_input
from pretrain.data.views.views import ClipSettings, evaluation_views
from pretrain.data.workers.batches import Batch
from pretrain.data.workers.planes import BatchPlanes
from pretrain.evaluation.video_score import VideoScore, best_rank
from pretrain.models.network import VideoNetwork
from pretrain.scoring.protocol import Averaged, average_views
from sharding.base.errors import CommandFailed


class ClipScorer:
    """A network in evaluation mode, the clips that it takes, and what is averaged of them."""

    def __init__(
        self,
        network: VideoNetwork,
        clip: ClipSettings,
        name: str,
        crops: int = 1,
        average: Averaged = "scores",
        window: tuple[int, int] | None = None,
    ) -> None:
        """`name`: what the network is called in messages. `crops`: of each clip.

        window: height and width of the last map of the crop that it was trained on, where a larger one is classified
        place by place.
        """
        self.network, self.clip, self.name = network, clip, name
        self.device = next(network.parameters()).device
        self._crops, self._average, self._window = crops, average, window

    def score(self, row: int, video: Batch, at_once: int) -> VideoScore:
        """The mean over the clips, crops and places of one video; `at_once` clips go through together.

        Raises CommandFailed for a network whose outputs are not finite.
        """
        views = evaluation_views(self.clip, video.planes.sizes[0], self._crops)
        with torch.inference_mode():
            crops = [self._logits(video.planes.seen_as([view] * len(video.planes)), at_once) for view in views]
        together = torch.stack(crops)
        if not together.isfinite().all():
            what = f"{self.name} gives scores that are not finite"
            raise CommandFailed(f"{what} (video {video.keys[0]}): its weights are of no use")
        mean = average_views(together, self._average)
        # By the function that judges a video, so that a video of one clip is right when its clip is.
        right = sum(best_rank(clip, video.labels[0]) < 1 for clip in mean.clip_scores.numpy())
        return VideoScore(row, mean.scores.numpy(), mean.logits.numpy(), len(mean.clip_scores), right)

    def _logits(self, planes: BatchPlanes, at_once: int) -> Tensor:
        """Of each clip at each of its places, on the host: clips places classes."""
        parts = []
        for begin in range(0, len(planes), at_once):
            part = made_batch(planes.part(begin, begin + at_once)).map_tensors(lambda planes: planes.to(self.device))
            clips = network_input(part, self.clip)
            if self._window:
                parts.append(self.network.logits_at_places(clips, self._window))
            else:
                parts.append(self.network(clips).unsqueeze(1))
        return torch.cat([part.float() for part in parts]).cpu()
