"""What predictions are compared on: networks of random connections under a strategy, drawn alike on every rank.

Legend: O, I rows and columns of a weight; U units of a space.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from grow.axes import IntArray
from grow.network import Network
from grow.topology import Connections, Topology
from hardware.execute.measure import Job
from hardware.partition import Partition
from hardware.workload import Workload


def mlp(*widths: int) -> tuple[nn.Module, torch.Tensor]:
    """A multilayer perceptron of these widths with ReLU, and an input of one sample."""
    layers = [layer for one, other in pairwise(widths) for layer in (nn.Linear(one, other), nn.ReLU())]
    return nn.Sequential(*layers[:-1]), torch.zeros(1, widths[0])


def convnet(*channels: int, kernel: int = 3, norms: bool = False, hidden: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """Convolutions of so many channels on images of 28 x 28, each with ReLU and pooling; padded, and with batch norms, if ``norms``.

    hidden: units of a layer before the outputs, 0 for none.
    """
    layers: list[nn.Module] = []
    for one, other in pairwise((1, *channels)):
        layers.append(nn.Conv2d(one, other, kernel, padding=kernel // 2 if norms else 0))
        layers += [nn.BatchNorm2d(other)] if norms else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    example = torch.zeros(1, 1, 28, 28)
    widths = (nn.Sequential(*layers, nn.Flatten())(torch.cat([example, example])).shape[1], *([hidden] if hidden else []), 10)
    heads = [layer for one, other in pairwise(widths) for layer in (nn.Linear(one, other), nn.ReLU())]
    return nn.Sequential(*layers, nn.Flatten(), *heads[:-1]), example


NETWORKS: Mapping[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "mlp-256x2": partial(mlp, 784, 256, 256, 10),
    "mlp-384x3": partial(mlp, 784, 384, 384, 384, 10),
    "mlp-512x3": partial(mlp, 784, 512, 512, 512, 10),
    "mlp-768x2": partial(mlp, 784, 768, 768, 10),
    "mlp-1024x3": partial(mlp, 784, 1024, 1024, 1024, 10),
    "mlp-1536x2": partial(mlp, 784, 1536, 1536, 10),
    "mlp-2048x2": partial(mlp, 784, 2048, 2048, 10),
    "conv-24-48": partial(convnet, 24, 48),
    "conv5-16-32": partial(convnet, 16, 32, kernel=5, hidden=200),
    "conv-norm-20-40": partial(convnet, 20, 40, norms=True),
    "conv-32-64-128": partial(convnet, 32, 64, 128),
    "conv5-20-50": partial(convnet, 20, 50, kernel=5, hidden=500),
    "conv-norm-32-64": partial(convnet, 32, 64, norms=True),
}


@dataclass(frozen=True)
class Case:
    """A network at a density (of the connections that may exist), trained under a strategy with a batch on some devices.

    crossing: share of the units of every hidden space that other parts may read. Parts are halves, thirds, ... of every space.
    """

    network: str
    density: float
    batch: int
    strategy: str
    devices: int
    crossing: float = 1.0

    @property
    def seed(self) -> int:
        """Of the network's weights and connections."""
        return zlib.crc32(self.text.encode())

    @property
    def text(self) -> str:
        """The case as JSON, from which every rank makes it anew."""
        return json.dumps(asdict(self))

    @cached_property
    def built(self) -> Network:
        """The network."""
        torch.manual_seed(self.seed)
        module, example = NETWORKS[self.network]()
        network = Network(module, example)
        generator = np.random.default_rng(self.seed)
        drawn = {layer.layer: self._drawn(network.topology, layer, generator) for layer in network.topology.layers}
        network.set_connections({name: index for name, index in drawn.items() if index is not None})
        return network

    def _drawn(self, topology: Topology, layer: Connections, generator: np.random.Generator) -> IntArray | None:
        """Positions of a layer's connections; None where all exist."""
        allowed = np.ones(layer.shape, bool)
        source, target = layer.source[0], layer.target_space
        hidden = {space.name for space in topology.hidden}
        if self.strategy == "model" and self.crossing < 1 and source.space in hidden and target in hidden:
            assert target is not None
            units = topology.units[source.space]
            crosses = np.zeros(units, bool)
            crosses[generator.choice(units, round(self.crossing * units), replace=False)] = True
            same = part_of(topology.units[target], self.devices)[:, None] == part_of(units, self.devices)[None, :]  # (O, U)
            pairs = np.repeat(same | crosses, source.repeat, 1)
            allowed &= pairs.reshape(*pairs.shape, *[1] * (len(layer.shape) - 2))
        if self.density < 1:
            allowed &= generator.random(layer.shape) < self.density
        return None if allowed.all() else np.flatnonzero(allowed)

    @property
    def partition(self) -> Partition | None:
        """Equal shares of every hidden space, where units are divided."""
        if self.strategy != "model":
            return None
        return Partition({space.name: part_of(space.units, self.devices) for space in self.built.topology.hidden}, self.devices)

    @cached_property
    def work(self) -> Workload:
        """What the cost model sees of it."""
        return Workload.of_network(self.built)


def part_of(units: int, parts: int) -> IntArray:
    """Consecutive parts of as equal sizes as can be, (U,)."""
    return np.arange(units) * parts // units


def job(text: str) -> Job:
    """A case as something that ranks train."""
    case = Case(**json.loads(text))
    example = NETWORKS[case.network]()[1]
    generator = torch.Generator().manual_seed(case.seed)
    inputs = torch.randn(case.batch, *example.shape[1:], generator=generator)
    targets = torch.randint(0, 10, (case.batch,), generator=generator)
    partition = case.partition
    parts = None if partition is None else partition.parts
    return Job(case.built, case.strategy, case.devices, inputs, targets, parts, learning_rate=1e-4)


PLAIN = (("mlp-256x2", 1.0, 128), ("mlp-512x3", 0.3, 256), ("mlp-1024x3", 1.0, 256), ("mlp-1024x3", 0.03, 256), ("mlp-2048x2", 0.1, 128))
VARIED = (("mlp-512x3", 1.0, 512), ("mlp-512x3", 0.03, 512), ("mlp-1024x3", 0.1, 64), ("mlp-256x2", 0.1, 256), ("mlp-2048x2", 0.02, 256))
TALKING = (("mlp-512x3", 1.0, 512), ("mlp-1024x3", 0.1, 512), ("mlp-2048x2", 1.0, 128))
ENTANGLED = (("mlp-256x2", 0.3, 512), ("mlp-1024x3", 0.03, 256), ("mlp-1024x3", 1.0, 128), ("mlp-2048x2", 0.03, 256))

IMAGES = (("conv-32-64-128", 1.0, 128), ("conv5-20-50", 1.0, 64), ("conv-norm-32-64", 1.0, 64))
PARTED = (("conv-32-64-128", 1.0, 64), ("conv5-20-50", 1.0, 128))


def cases(devices: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Cases to fit coefficients to, and others, on which errors are found: other networks, densities and batches."""
    fitted = [
        *(Case(name, density, 192, "single", 1) for name, density in (("mlp-384x3", 1.0), ("mlp-768x2", 0.05), ("mlp-1536x2", 0.2))),
        *(Case(name, density, 192, "data", devices) for name, density in (("mlp-384x3", 0.05), ("mlp-768x2", 1.0), ("mlp-1536x2", 1.0))),
        *(Case("mlp-384x3", 0.5, 96, strategy, count) for strategy, count in (("single", 1), ("data", devices))),
        *_divided(devices, (("mlp-384x3", 1.0, 192), ("mlp-384x3", 0.05, 384), ("mlp-1536x2", 1.0, 192), ("mlp-1536x2", 0.05, 384)), 0.1),
        *_divided(devices, (("mlp-384x3", 0.05, 96), ("mlp-768x2", 0.5, 192)), 1.0),
        *(Case(name, 1.0, 96, "single", 1) for name in ("conv-24-48", "conv5-16-32", "conv-norm-20-40")),
        *(Case(name, 1.0, 96, "data", devices) for name in ("conv-24-48", "conv-norm-20-40")),
        *_divided(devices, (("conv-24-48", 1.0, 96), ("conv5-16-32", 1.0, 96)), 0.2),
    ]
    held = [
        *(Case(*network, "single", 1) for network in (*PLAIN, *VARIED)),
        *(Case(*network, "data", devices) for network in (*PLAIN, *VARIED)),
        *(Case(*network, "single", 1) for network in IMAGES),
        *(Case(*network, "data", devices) for network in IMAGES),
        *_divided(devices, PARTED, 0.1),
        *_divided(devices, PLAIN, 0.02),
        *_divided(devices, TALKING, 0.2),
        *_divided(devices, ENTANGLED, 1.0),
    ]
    if devices == 1:
        fitted, held = ([case for case in some if case.strategy == "single"] for some in (fitted, held))
    return tuple(fitted), tuple(held)


def _divided(devices: int, networks: tuple[tuple[str, float, int], ...], crossing: float) -> list[Case]:
    return [Case(*network, "model", devices, crossing) for network in networks] if devices > 1 else []
