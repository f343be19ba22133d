"""Convolutional start networks for colour images (B, 3, H, W). Outputs are logits (B, classes).

Legend: B batch, C channels, H W a feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

CLASSES = 10


def vgg11(channels: Sequence[int] = (64, 128, 256, 256, 512, 512, 512, 512), classes: int = CLASSES) -> nn.Sequential:
    """VGG-A with batch norm and one linear layer, for 32x32 images: 9.2 million weights. Simonyan, Zisserman 2015, arXiv 1409.1556."""
    pooled = {0, 1, 3, 5, 7}
    layers: list[nn.Module] = []
    for number, (sources, targets) in enumerate(pairwise((3, *channels))):
        layers += [nn.Conv2d(sources, targets, 3, padding=1, bias=False), nn.BatchNorm2d(targets), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if number in pooled else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1], classes))


def alexnet(channels: Sequence[int] = (64, 192, 384, 256, 256), hidden: int = 4096, classes: int = 1000) -> nn.Sequential:
    """AlexNet in one column, for 224x224 images: 61 million weights. Krizhevsky 2014, arXiv 1404.5997."""
    a, b, c, d, e = channels
    return nn.Sequential(
        *(nn.Conv2d(3, a, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.AdaptiveAvgPool2d(6), nn.Flatten()),
        *(nn.Dropout(), nn.Linear(e * 36, hidden), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU()),
        nn.Linear(hidden, classes),
    )


class ResidualBlock(nn.Module):
    """Two convolutions, added to the input or to its projection. He et al. 2016, arXiv 1512.03385, figure 2."""

    def __init__(self, sources: int, targets: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(sources, targets, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(targets)
        self.conv2 = nn.Conv2d(targets, targets, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(targets)
        projection = nn.Sequential(nn.Conv2d(sources, targets, 1, stride, bias=False), nn.BatchNorm2d(targets))
        self.shortcut = nn.Identity() if (sources, stride) == (targets, 1) else projection

    def forward(self, x: Tensor) -> Tensor:
        """X (B, C, H, W) -> (B, C', H', W')."""
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


def resnet(widths: Sequence[int], blocks: int, classes: int = CLASSES) -> nn.Sequential:
    """A residual network for 32x32 images, ``blocks`` blocks at every width; the feature map halves from width to width."""
    stem = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    stages = [
        ResidualBlock(sources if number == 0 else targets, targets, 2 if number == 0 and stage > 0 else 1)
        for stage, (sources, targets) in enumerate(pairwise((widths[0], *widths)))
        for number in range(blocks)
    ]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


def resnet18(width: int = 64, classes: int = CLASSES) -> nn.Sequential:
    """ResNet-18 with a stem for 32x32 images: 11.2 million weights."""
    return resnet((width, 2 * width, 4 * width, 8 * width), 2, classes)


def resnet_small(width: int = 16, classes: int = CLASSES) -> nn.Sequential:
    """ResNet-20's widths with one block each."""
    return resnet((width, 2 * width, 4 * width), 1, classes)


class DenseBlock(nn.Module):
    """Layers that each read the outputs of all before. Huang et al. 2017, arXiv 1608.06993, equation 2."""

    def __init__(self, sources: int, growth: int, layers: int) -> None:
        super().__init__()
        widths = [sources + growth * number for number in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1, bias=False) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        """X (B, C, H, W) -> (B, C + layers * growth, H, W)."""
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(torch.relu(norm(x)))], 1)
        return x


def densenet_small(growth: int = 12, layers: int = 4, classes: int = CLASSES) -> nn.Sequential:
    """Two dense blocks with a transition between them, for 32x32 images."""
    first = 2 * growth
    wide = first + layers * growth
    narrow = wide // 2
    last = narrow + layers * growth
    return nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1, bias=False),
        DenseBlock(first, growth, layers),
        *(nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, narrow, 1, bias=False), nn.AvgPool2d(2)),
        DenseBlock(narrow, growth, layers),
        *(nn.BatchNorm2d(last), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes)),
    )


class InvertedResidual(nn.Module):
    """Widen, filter every channel by itself, narrow. Sandler et al. 2018 (MobileNetV2), arXiv 1801.04381, figure 3."""

    def __init__(self, sources: int, targets: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = sources * expansion
        self.widen = nn.Sequential(nn.Conv2d(sources, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6())
        self.filter = nn.Sequential(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6())
        self.narrow = nn.Sequential(nn.Conv2d(wide, targets, 1, bias=False), nn.BatchNorm2d(targets))
        self.added = (sources, stride) == (targets, 1)

    def forward(self, x: Tensor) -> Tensor:
        """X (B, C, H, W) -> (B, C', H', W')."""
        y: Tensor = self.narrow(self.filter(self.widen(x)))
        return x + y if self.added else y


def mobilenet_small(widths: Sequence[int] = (16, 24, 32), expansion: int = 4, classes: int = CLASSES) -> nn.Sequential:
    """Two inverted residual blocks at every width but the first, for 32x32 images."""
    stem = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU6()]
    blocks = [
        block
        for sources, targets in pairwise(widths)
        for block in (InvertedResidual(sources, targets, 2, expansion), InvertedResidual(targets, targets, 1, expansion))
    ]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
