"""Small modules that together have every kind of layer and of coupling that the engine follows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grow.network import Network


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


@dataclass(frozen=True)
class Sample:
    """A module, and the shape of one input."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def network(self, seed: int = 0, kernel: str = "dense", dtype: torch.dtype = torch.float64) -> Network:
        """The network in training mode, batch-norm statistics and all tensors different from their defaults."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = Network(self.build(), torch.zeros(1, *self.shape)).to(dtype)
            for name, tensor in network.module.state_dict().items():
                if "norm" in name and tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape) + 0.5)
        network.use_kernels(lambda case: kernel, 8)
        return network

    def inputs(self, seed: int = 0, samples: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(samples, *self.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


SAMPLES: Mapping[str, Sample] = {
    "perceptron": Sample(perceptron, (5,)),
    "convolutional": Sample(Convolutional, (2, 6, 6)),
    "coupled": Sample(Coupled, (5,)),
    "convolutional coupled": Sample(ConvolutionalCoupled, (2, 5, 5)),
}
