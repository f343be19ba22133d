"""What follows a network through its edits, besides optimizers: averaged copies, movement scores, accumulated gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias

from torch import Tensor

from grow.axes import IntArray
from grow.topology import Topology

NewEntry: TypeAlias = Literal["zero", "copy"]
"""What a new entry holds: zero, or a copy of the network's own."""


class Follower(Protocol):
    """Tensors shaped like parameters or buffers of `Network.module`, by their name.

    Every edit replaces them in ``tensors`` as it replaces the network's own. What survives keeps its value, bit for bit; only where
    an edit changes weights themselves (splitting, merging) are copies changed in the same way.
    """

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By name; an edit sets entries of this very dictionary."""
        ...

    @property
    def new_entry(self) -> NewEntry:
        """What a new entry holds."""
        ...


class Record(Protocol):
    """Something that remembers positions of a network's connections, existing or not."""

    def edited(self, before: Topology, after: Topology, moves: Mapping[str, IntArray] | None) -> None:
        """An edit has been carried out. ``moves``: old unit of every new one, by space; None where the whole network was replaced."""
        ...
