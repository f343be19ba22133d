"""Exponential moving average of a network's weights, which often generalises better than the last ones (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from grow.follow import NewEntry
from grow.network import Network


class WeightAverage:
    """average <- decay * average + (1 - decay) * weight, after every step; batch norm's running statistics likewise.

    Attached to a network it follows every edit: what is new begins as a copy of the weight, what was pruned is gone from the average
    too. ``decay`` must be in [0, 1).

    >>> network = Network(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)), torch.zeros(1, 4))
    >>> average = WeightAverage(network, decay=0.99)
    >>> network.attach(average)
    >>> network.remove_units("0", [1])
    >>> average.tensors["2.weight"].shape
    torch.Size([2, 2])
    """

    new_entry: NewEntry = "copy"

    def __init__(self, network: Network, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, but must be in [0, 1); 0.999 averages over about a thousand steps")
        self.decay = decay
        self._network = network
        self._tensors = {name: tensor.detach().clone() for name, tensor in _state(network).items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The averages, by the name of the parameter or buffer."""
        return self._tensors

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        for name, tensor in _state(self._network).items():
            if tensor.is_floating_point():
                self._tensors[name].lerp_(tensor.detach(), 1 - self.decay)
            else:
                self._tensors[name].copy_(tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network with averaged weights; afterwards it has its own again, bit for bit. No edit and no step in between."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def adopt(self) -> None:
        """Give the network the averaged weights for good."""
        for name, tensor in _state(self._network).items():
            tensor.copy_(self._tensors[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, tensor in _state(self._network).items():
            own = tensor.detach().clone()
            tensor.copy_(self._tensors[name])
            self._tensors[name].copy_(own)


def _state(network: Network) -> dict[str, Tensor]:
    """Parameters and buffers that have axes."""
    found = dict(network.module.named_parameters()) | dict(network.module.named_buffers())
    return {name: found[name] for name in network.axes}
