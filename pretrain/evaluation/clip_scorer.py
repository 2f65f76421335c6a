"""Scores a video by a network, once its clips are decoded."""

from __future__ import annotations

import torch

from pretrain.data.device.tensors import made_batch
from pretrain.data.device.transforms import network_input
from pretrain.data.views.views import ClipSettings
from pretrain.data.workers.batches import Batch
from pretrain.evaluation.video_score import VideoScore, best_rank
from pretrain.models.network import VideoNetwork
from sharding.base.errors import CommandFailed


class ClipScorer:
    """A network in evaluation mode and the clips that it takes; `name`: what it is called in messages."""

    def __init__(self, network: VideoNetwork, clip: ClipSettings, name: str) -> None:
        self.network, self.clip, self.name = network, clip, name
        self.device = next(network.parameters()).device

    def score(self, row: int, video: Batch, at_once: int) -> VideoScore:
        """Softmax of each clip of a batch of one video, averaged over them; `at_once` clips go through together.

        Raises CommandFailed for a network whose outputs are not finite.
        """
        with torch.inference_mode():
            logits = []
            for begin in range(0, len(video.planes), at_once):
                part = made_batch(video.planes.part(begin, begin + at_once)).map_tensors(
                    lambda planes: planes.to(self.device)
                )
                logits.append(self.network(network_input(part, self.clip)).float())
        together = torch.cat(logits).cpu()
        if not together.isfinite().all():
            what = f"{self.name} gives scores that are not finite"
            raise CommandFailed(f"{what} (video {video.keys[0]}): its weights are of no use")
        scores = together.softmax(1)
        # By the function that judges a video, so that a video of one clip is right when its clip is.
        right = sum(best_rank(clip, video.labels[0]) < 1 for clip in scores.numpy())
        return VideoScore(row, scores.mean(0).numpy(), together.mean(0).numpy(), len(scores), right)
