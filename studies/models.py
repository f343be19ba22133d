"""The start networks for grey images (B, 1, H, W): perceptrons, LeNet-5 and a wide ConvNet. Outputs are logits (B, 10)."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import nn


def mlp_1024x3() -> nn.Sequential:
    """784-1024-1024-1024-10."""
    return _mlp(784, 1024, 1024, 1024, 10)


def lenet_300_100() -> nn.Sequential:
    """784-300-100-10 (LeCun et al. 1998, Gradient-based learning applied to document recognition)."""
    return _mlp(784, 300, 100, 10)


def lenet_5() -> nn.Sequential:
    """LeNet-5 as Caffe has it, for 28x28 images: 20 and 50 channels, 500 units, 430,500 weights."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),  # (B, 20, 24, 24)
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),  # (B, 50, 8, 8)
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),  # (B, 800)
            fc1=nn.Linear(800, 500),
            relu3=nn.ReLU(),
            fc2=nn.Linear(500, 10),
        )
    )


def convnet_64_128_256() -> nn.Sequential:
    """Three 3x3 convolutions of 64, 128 and 256 channels for 28x28 images, and a linear layer: 392,256 weights."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 64, 3),  # (B, 64, 26, 26)
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(64, 128, 3),  # (B, 128, 11, 11)
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(128, 256, 3),  # (B, 256, 3, 3)
            relu3=nn.ReLU(),
            flatten=nn.Flatten(),  # (B, 2304)
            fc=nn.Linear(2304, 10),
        )
    )


def mlp_64x2() -> nn.Sequential:
    """64-64-64-10, for 8x8 images."""
    return _mlp(64, 64, 64, 10)


def _mlp(*widths: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, (sources, targets) in enumerate(pairwise(widths), start=1):
        layers[f"fc{number}"] = nn.Linear(sources, targets)
        layers[f"relu{number}"] = nn.ReLU()
    layers.popitem()  # no ReLU after the logits
    return nn.Sequential(layers)
