"""R(2+1)D as anyone writes it: nn.Conv3d, nn.BatchNorm3d and nn.ReLU, under the names of the published weights."""

from __future__ import annotations

from torch import Tensor, nn

BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def _norm(planes: int) -> nn.BatchNorm3d:
    return nn.BatchNorm3d(planes, eps=1e-3)


class Conv2Plus1D(nn.Sequential):
    """1×3×3, BN, ReLU, 3×1×1."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        middle = inputs * outputs * 27 // (inputs * 9 + 3 * outputs)
        super().__init__(
            nn.Conv3d(inputs, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
            _norm(middle),
            nn.ReLU(inplace=True),
            nn.Conv3d(middle, outputs, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
        )


class Block(nn.Module):
    """A basic block, or a bottleneck where `expansion` is above 1."""

    def __init__(self, inputs: int, planes: int, stride: int, expansion: int) -> None:
        super().__init__()
        outputs = planes * expansion
        relu = nn.ReLU(inplace=True)
        if expansion > 1:
            first = nn.Conv3d(inputs, planes, 1, bias=False)
            self.conv1 = nn.Sequential(first, _norm(planes), relu)
            self.conv2 = nn.Sequential(Conv2Plus1D(planes, planes, stride), _norm(planes), relu)
            self.conv3 = nn.Sequential(nn.Conv3d(planes, outputs, 1, bias=False), _norm(outputs))
        else:
            self.conv1 = nn.Sequential(Conv2Plus1D(inputs, planes, stride), _norm(planes), relu)
            self.conv2 = nn.Sequential(Conv2Plus1D(planes, planes, 1), _norm(planes))
            self.conv3 = nn.Sequential()
        self.relu = relu
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv3d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, _norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv3(self.conv2(self.conv1(x))) + self.downsample(x))


class PlainR2Plus1D(nn.Module):
    """N 3 T H W → logits N classes, clips of 8 frames or more."""

    def __init__(self, depth: int, classes: int, width: float) -> None:
        super().__init__()
        expansion = 4 if depth >= 50 else 1
        inputs = round(64 * width)
        self.stem = nn.Sequential(
            nn.Conv3d(3, round(45 * width), (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            _norm(round(45 * width)),
            nn.ReLU(inplace=True),
            nn.Conv3d(round(45 * width), inputs, (3, 1, 1), 1, (1, 0, 0), bias=False),
            _norm(inputs),
            nn.ReLU(inplace=True),
        )
        for stage, blocks in enumerate(BLOCKS[depth]):
            planes, made = round(64 * 2**stage * width), []
            for block in range(blocks):
                made.append(Block(inputs, planes, 2 if stage and not block else 1, expansion))
                inputs = planes * expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return self.fc(self.avgpool(x).flatten(1))
