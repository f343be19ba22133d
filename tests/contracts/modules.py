"""Small modules that together have every kind of layer and of coupling that the engine follows."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from grow.network import Network
from grow.norms import GroupNorm, LayerNorm
from studies.transformers import sequence_small, vit_small
from studies.vision import alexnet, densenet_small, mobilenet_small, resnet, vgg11


class Convolutional(nn.Module):
    """Convolutions, batch norm over channels, pooling, a linear layer after flatten, batch norm over units."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 5, 3, bias=False)
        self.fc1 = nn.Linear(20, 6)
        self.norm2 = nn.BatchNorm1d(6)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(torch.tanh(self.norm2(self.fc1(torch.flatten(x, 1)))))


class Coupled(nn.Module):
    """A residual addition, which couples two layers' units, and a concatenation, which gives a layer two source spaces."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.block = nn.Linear(6, 6)
        self.side = nn.Linear(5, 4, bias=False)
        self.middle = nn.Linear(10, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        stem = torch.relu(self.stem(x))
        joined = torch.cat([stem + torch.tanh(self.block(stem)), torch.relu(self.side(x))], 1)
        return self.head(torch.relu(self.middle(joined)))


class ConvolutionalCoupled(nn.Module):
    """The same couplings between feature maps, flattened afterwards, with a stride and a dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, stride=2, padding=1)
        self.block = nn.Conv2d(3, 3, 3, padding=2, dilation=2)
        self.norm = nn.BatchNorm2d(3)
        self.side = nn.Conv2d(2, 2, 1, stride=2)
        self.head = nn.Linear(45, 3)

    def forward(self, x: Tensor) -> Tensor:
        stem = torch.relu(self.stem(x))
        joined = torch.cat([stem + self.norm(self.block(stem)), self.side(x)], 1)
        return self.head(torch.relu(joined).flatten(1))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 4, bias=False), nn.ReLU(inplace=True), nn.Linear(4, 3))


class Normed(nn.Module):
    """Group norm, gated chunks and a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.GroupNorm(3, 6)
        self.gated, self.head = nn.Linear(6, 8), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.gated(torch.relu(self.norm(self.conv(x))).mean((2, 3))).chunk(2, dim=1)
        return self.head(value * torch.sigmoid(gate) * self.scale)


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, LayerNorm, GroupNorm)


@dataclass(frozen=True)
class Sample:
    """A module, and the shape of one input: numbers, or ``tokens`` different token numbers."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tokens: int = 0

    def network(self, seed: int = 0, kernel: str = "dense", dtype: torch.dtype = torch.float64) -> Network:
        """The network in training mode, batch-norm statistics and all tensors different from their defaults."""
        network = copy.deepcopy(_traced(self, seed, dtype))
        network.use_kernels(lambda case: kernel, 8)
        return network

    def inputs(self, seed: int = 0, samples: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.tokens:
            return torch.randint(self.tokens, (samples, *self.shape), generator=generator)
        return torch.randn(samples, *self.shape, generator=generator, dtype=dtype)


@cache
def _traced(sample: Sample, seed: int, dtype: torch.dtype) -> Network:
    """Traced once: a copy takes an eighth of the time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network(sample.build(), sample.inputs(samples=1) if sample.tokens else torch.zeros(1, *sample.shape)).to(dtype)
        for name, tensor in network.module.state_dict().items():
            norm = isinstance(network.module.get_submodule(name.rpartition(".")[0]), NORMS)
            if norm and tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return network


SAMPLES: Mapping[str, Sample] = {
    "perceptron": Sample(perceptron, (5,)),
    "convolutional": Sample(Convolutional, (2, 6, 6)),
    "coupled": Sample(Coupled, (5,)),
    "convolutional coupled": Sample(ConvolutionalCoupled, (2, 5, 5)),
}

NETWORKS: Mapping[str, Sample] = {
    "vgg11": Sample(lambda: vgg11((3, 4, 3, 4, 3, 4, 3, 4), 3), (3, 32, 32)),
    "alexnet": Sample(lambda: alexnet((3, 4, 3, 4, 2), 5, 3), (3, 64, 64)),
    "resnet": Sample(lambda: resnet((3, 4), 1, 3), (3, 6, 6)),
    "densenet": Sample(lambda: densenet_small(2, 2, 3), (3, 4, 4)),
    "mobilenet": Sample(lambda: mobilenet_small((3, 4), 2, 3), (3, 6, 6)),
    "vision transformer": Sample(lambda: vit_small(4, 2, 6, 2, 1, 3), (3, 4, 4)),
    "sequence transformer": Sample(lambda: sequence_small(7, 4, 6, 2, 1, 3), (4,), tokens=7),
    "normed": Sample(Normed, (2, 3, 3)),
}
"""The start networks of the studies, as small as they go, and norms and gates."""
