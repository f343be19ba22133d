"""What an edit must know of a network, and nothing more: `grow.network.Network` is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, fx

from grow.axes import Axes, IntArray
from grow.follow import Follower, Record
from grow.layers import SparseConv2d, SparseLinear
from grow.topology import Topology


class Editable(Protocol):
    """A traced module with all that goes with it through an edit."""

    @property
    def module(self) -> fx.GraphModule:
        """The traced module."""

    @property
    def example(self) -> Tensor:
        """One input, (1, ...)."""

    @property
    def topology(self) -> Topology:
        """Spaces and connections as they are now."""

    @property
    def layers(self) -> Mapping[str, SparseLinear | SparseConv2d]:
        """Layers with connections, by path."""

    @property
    def dense_axes(self) -> Mapping[str, Axes]:
        """Axes of every tensor, every weight as if it were stored dense, by name."""

    @property
    def fills(self) -> Mapping[str, float]:
        """Values of what is new in tensors in which it is not zero, by name."""

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""

    @property
    def parts(self) -> Mapping[str, IntArray] | None:
        """The part of every hidden unit, by space."""

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """Optimizers that follow every edit."""

    @property
    def followers(self) -> tuple[Follower, ...]:
        """What else follows every edit."""

    @property
    def records(self) -> tuple[Record, ...]:
        """What remembers positions of its connections."""

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers that have axes, by name."""

    def placed(self, topology: Topology, parts: Mapping[str, IntArray]) -> dict[str, IntArray]:
        """Parts after an edit, given those with -1 for new units."""
