"""A split whose sizes follow the network: chunks, splits and slices of units with literal sizes become this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from grow.axes import Segment, SpaceAxis


class Pieces(nn.Module):
    """Splits x along ``dim`` into one piece per axis.

    Every segment has a buffer of one entry per unit, which edits shrink and extend like any other tensor; its length is all
    that counts. ``segments`` names the space of each buffer.
    """

    def __init__(self, dim: int, axes: Sequence[SpaceAxis], units: Mapping[str, int]) -> None:
        super().__init__()
        self.dim = dim
        self.segments: dict[str, Segment] = {}
        self.repeats: list[list[tuple[str, int]]] = []
        for piece, axis in enumerate(axes):
            self.repeats.append([])
            for number, segment in enumerate(axis):
                name = f"units_{piece}_{number}"
                self.register_buffer(name, torch.zeros(units[segment.space], dtype=torch.uint8), persistent=False)
                self.segments[name] = Segment(segment.space)
                self.repeats[-1].append((name, segment.repeat))

    def sizes(self) -> list[int]:
        """Entries of every piece."""
        return [sum(len(self.get_buffer(name)) * repeat for name, repeat in piece) for piece in self.repeats]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """X (..., L, ...) -> its pieces."""
        return torch.split(x, self.sizes(), self.dim)
