"""Baselines whose Inception-V1 sees pictures: with an LSTM over frames, and of two streams fused in 3D."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.convolutions import conv3d
from pretrain.models.inception import PARTS, STAGES, SamePool, Unit3D, inception_layers, initialise
from pretrain.models.network import LaneDropout, VideoNetwork
from sharding.base.errors import UserError

_PLANES = 512  # of the LSTM, and of the fusion's convolution
_RGB, _FLOW = 3, 2  # channels of a clip of both
_SNIPPET = 10  # frames of flow to a picture


class NormalisedLSTM(nn.Module):
    """Average pooling of each frame and an LSTM over the frames: N C T H W → N D T 1 1, its output at each.

    What the frames put in is batch-normalised over clips and frames, with a scale that begins at 0.1; a forget gate's
    bias begins at 1. Of Cooijmans et al. 2016 (arXiv 1603.09025) that is the half which needs no statistics of a
    single step: a lane's few clips would give poor ones.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.input = conv3d(inputs, 4 * hidden, (1, 1, 1))
        self.norm = LaneBatchNorm(4 * hidden)
        self.recurrent = nn.Linear(hidden, 4 * hidden)

    def initialise(self) -> None:
        """The scale and the bias as above; all else is as other layers are drawn."""
        nn.init.constant_(self.norm.weight, 0.1)
        nn.init.zeros_(self.recurrent.bias)
        nn.init.ones_(self.recurrent.bias[self.hidden : 2 * self.hidden])

    def forward(self, x: Tensor) -> Tensor:
        """The outputs, step by step; the cell's state is kept in single precision where activations are in half."""
        sums: Tensor = self.norm(self.input(x.mean(dim=(3, 4), keepdim=True))).flatten(2)  # N 4D T
        if sums.is_meta and not torch.is_grad_enabled():  # counted, not computed: all steps at once, which may be many
            self.recurrent(sums.new_empty(len(sums), sums.shape[2], self.hidden))
            return sums[:, : self.hidden, :, None, None]
        output = sums.new_zeros(len(sums), self.hidden)
        cell = output.to(torch.promote_types(output.dtype, torch.float32))
        outputs: list[Tensor] = []
        for step in sums.unbind(2):
            input_gate, forget_gate, output_gate, candidate = (step + self.recurrent(output)).chunk(4, dim=1)
            cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate.tanh()
            output = (output_gate.sigmoid() * cell.tanh()).to(sums.dtype)
            outputs.append(output)
        return torch.stack(outputs, dim=2)[..., None, None]


class ConvNetLSTM(VideoNetwork):
    """Inception-V1 over each frame, an LSTM of 512 over what they give, and a classifier: ConvNet+LSTM.

    Source: Carreira and Zisserman 2017 (arXiv 1705.07750, section 2.1, and table 1 for its 9 M parameters; fed every
    fifth frame, `data.clip.stride=5`). There the loss is taken at every frame and the last one's output in testing;
    here the logits of all frames are averaged, as LRCN does (Donahue et al. 2015, arXiv 1411.4389). Any number of
    frames and any size run.
    """

    head: ClassVar[str] = "fc"
    stages: ClassVar[tuple[tuple[str, ...], ...]] = (*STAGES, ("lstm",))
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {**PARTS, "lstm": ("lstm",)}

    def __init__(self, classes: int, in_channels: int = 3, width: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        layers, inputs = inception_layers("2d", in_channels, width)
        for name, layer in layers.items():
            self.add_module(name, layer)
        hidden = max(1, round(_PLANES * width))
        self.lstm = NormalisedLSTM(inputs, hidden)
        self.dropout = LaneDropout(dropout)
        self.fc = nn.Linear(hidden, classes)
        self.apply(initialise)
        self.lstm.initialise()
        _initialise_classifier(self.fc)

    def features(self, clips: Tensor) -> Tensor:  # N C T H W → N 512
        """The LSTM's output, averaged over the frames; the classifier, which is linear, may come after that."""
        return self.through_stages(clips).mean(dim=(2, 3, 4))

    def classify(self, features: Tensor) -> Tensor:  # N 512 → N classes
        """Dropout and the fully connected layer."""
        logits: Tensor = self.fc(self.dropout(features))
        return logits


class _StreamsStem(nn.Module):
    """The first convolution of each stream: of every tenth picture, and of each ten frames of flow."""

    def __init__(self, rgb: nn.Module, flow: nn.Module) -> None:
        super().__init__()
        self.rgb, self.flow = rgb, flow

    def forward(self, x: Tensor) -> Tensor:  # N 5 T H W → N 2C ⌊T/10⌋ H/2 W/2
        frames = x.shape[2] // _SNIPPET * _SNIPPET
        x = x[:, :, :frames]
        return torch.cat((self.rgb(x[:, :_RGB, ::_SNIPPET]), self.flow(x[:, _RGB:])), dim=1)


class _Streams(nn.Module):
    """Layers of each stream on its half of the channels."""

    def __init__(self, rgb: nn.Module, flow: nn.Module) -> None:
        super().__init__()
        self.rgb, self.flow = rgb, flow

    def forward(self, x: Tensor) -> Tensor:  # N 2C T H W → N 2C' T H' W'
        rgb, flow = x.chunk(2, dim=1)
        return torch.cat((self.rgb(rgb), self.flow(flow)), dim=1)


class FusedTwoStream(VideoNetwork):
    """Two Inception-V1, over pictures and over flow, joined by a 3D convolution before their last pooling: 3D-Fused.

    A clip has five channels, red, green, blue, dx and dy. One stream sees the first of each ten pictures, the other
    ten frames of flow stacked (a convolution over 10×7×7 that strides by ten), so 50 frames are five steps. Frames
    beyond the last ten are left out.

    Source: Carreira and Zisserman 2017 (arXiv 1705.07750, section 2.3, after Feichtenhofer et al. 2016): the 3×3×3
    convolution has 512 planes, and 3×3×3 max pooling and a fully connected layer follow. The paper leaves open how the
    streams join, how the pooling strides, and what the classifier sees: here they are joined along the channels (added,
    25.6 M parameters would be left), the pooling strides by two, and its output is averaged. Table 1 has 39 M
    parameters. Here the convolutions' weights are 39.5 M and all parameters 39.8 M, 2 % more, and a classifier of each
    place by itself would have 2.3 M more still.

    Raises UserError for clips under ten frames.
    """

    head: ClassVar[str] = "fc"
    stages: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("stem", "conv2"),
        ("conv3",),
        ("conv4",),
        ("conv5",),
        ("fusion",),
    )
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        name: (name,) for name in ("stem", "conv2", "conv3", "conv4", "conv5", "fusion")
    }

    def __init__(self, classes: int, frames: int, width: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        _require_frames(frames)
        rgb, inputs = inception_layers("2d", _RGB, width)
        flow, _ = inception_layers("2d", _FLOW, width, stacked=_SNIPPET)
        first = STAGES[0][0]
        self.stem = _StreamsStem(rgb.pop(first), flow.pop(first))
        for number, (rgb_stage, flow_stage) in enumerate(zip(_by_stage(rgb), _by_stage(flow), strict=True), start=2):
            self.add_module(f"conv{number}", _Streams(rgb_stage, flow_stage))
        planes = max(1, round(_PLANES * width))
        self.fusion = nn.Sequential(Unit3D(2 * inputs, planes, (3, 3, 3)), SamePool((3, 3, 3), (2, 2, 2)))
        self.dropout = LaneDropout(dropout)
        self.fc = nn.Linear(planes, classes)
        self.apply(initialise)
        _initialise_classifier(self.fc)

    @property
    def in_channels(self) -> int:
        """Channels of a clip: RGB and flow."""
        return _RGB + _FLOW

    def features(self, clips: Tensor) -> Tensor:  # N 5 T H W → N 512
        """The fused activations, averaged. Raises UserError for clips under ten frames."""
        _require_frames(clips.shape[2])
        return self.through_stages(clips).mean(dim=(2, 3, 4))

    def classify(self, features: Tensor) -> Tensor:  # N 512 → N classes
        """Dropout and the fully connected layer."""
        logits: Tensor = self.fc(self.dropout(features))
        return logits


def _by_stage(layers: Mapping[str, nn.Module]) -> list[nn.Sequential]:
    """The layers as conv2_x to conv5_x, each with the pooling before it."""
    stages: dict[str, OrderedDict[str, nn.Module]] = {f"conv{number}": OrderedDict() for number in range(2, 6)}
    part_of = {name: part for part, names in PARTS.items() for name in names}
    pools: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        if name in part_of:
            stages[part_of[name]] |= {**pools, name: layer}
            pools = {}
        else:
            pools[name] = layer
    return [nn.Sequential(stage) for stage in stages.values()]


def _require_frames(frames: int) -> None:
    if frames < _SNIPPET:
        raise UserError(
            f"a fused two-stream network sees ten frames of flow to a picture, and a clip has {frames}",
            "data.clip.frames",
            "give it clips of at least 10 frames (50 in the paper), or take another network",
        )


def _initialise_classifier(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight, 0.0, 0.01)
    nn.init.zeros_(layer.bias)
