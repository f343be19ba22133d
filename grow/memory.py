"""One number per existing connection that is remembered from step to step and goes along with every edit."""

from __future__ import annotations

import torch
from torch import Tensor

from grow.follow import NewEntry
from grow.network import Network


class Memory:
    """Zero for every connection of a network, and for every one that it gains later. A `grow.follow.Follower`, to be attached.

    ``tensors`` are shaped like the layers' weights as they are stored, by the weight's name in `Network.module`.
    """

    def __init__(self, network: Network) -> None:
        self._tensors = {f"{name}.weight": torch.zeros_like(layer.weight) for name, layer in network.layers.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By name; edits set entries of this dictionary."""
        return self._tensors

    @property
    def new_entry(self) -> NewEntry:
        """Zero."""
        return "zero"
