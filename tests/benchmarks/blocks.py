"""A partitioned network on one worker as its blocks: dense products of what each part reads, and of nothing else.

The fair one-worker side of strong scaling at density 1: the engine's dense products, the same as the workers compute with, and autograd.

Legend: B batch, O / I target and source units of a layer, p parts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, fx, nn

from grow.axes import IntArray
from grow.kernels.linear import linear
from grow.network import Network

ALIGNED = 16
"""Products of a width that is no multiple of 16 take up to a tenth longer; the shards of k workers are padded alike."""


fx.wrap("linear")  # a trace calls it, and does not look inside


class Blocks(nn.Module):
    """The same function as a network of linear layers with ReLU between them, whose hidden spaces are divided into ``parts``."""

    def __init__(self, network: Network, parts: Mapping[str, IntArray]) -> None:
        super().__init__()
        layers = network.topology.layers
        count = 1 + max(int(part.max()) for part in parts.values())
        self.first = nn.ModuleList()
        self.inner = nn.ModuleList()
        self.last = nn.ModuleList()
        for place, layer in enumerate(layers):
            whole = network.layers[layer.layer]
            weight, bias = whole.dense_weight(), whole.bias
            assert bias is not None
            rows, columns = parts.get(str(layer.target_space)), parts.get(layer.source[0].space)
            blocks = self.first if place == 0 else self.inner if rows is not None else self.last
            found = nn.ModuleList(_Block(weight, bias.detach(), rows, columns, number) for number in range(count))
            blocks.append(found)

    def forward(self, x: Tensor) -> Tensor:
        """X (B, ...) -> logits (B, O)."""
        flat = x.flatten(1)
        values = [block([flat]).relu() for block in self.first[0]]  # type: ignore[union-attr]
        for blocks in self.inner:
            values = [block(values).relu() for block in blocks]  # type: ignore[union-attr]
        partial = [block(values) for block in self.last[0]]  # type: ignore[union-attr]
        return sum(partial[1:], partial[0])


class _Block(nn.Module):
    """What the rows of one part read: all own columns, and from each other part those that any row reads."""

    def __init__(self, weight: Tensor, bias: Tensor, rows: IntArray | None, columns: IntArray | None, number: int) -> None:
        super().__init__()
        kept = np.arange(len(weight)) if rows is None else np.flatnonzero(rows == number)
        mine = weight[kept]  # (O of the part, I)
        self.number, self.taken = number, nn.ParameterList()
        read: list[Tensor] = [mine] if columns is None else [mine[:, columns == number]]
        others = [] if columns is None or rows is None else [other for other in range(int(columns.max()) + 1) if other != number]
        for other in others:
            theirs = mine[:, columns == other]
            crossing = theirs.ne(0).any(0).nonzero().flatten()
            self.taken.append(nn.Parameter(crossing, requires_grad=False))
            read.append(theirs[:, crossing])
        self.others, self.whole = others, columns is None
        width = sum(part.shape[1] for part in read)
        self.padding = -width % ALIGNED if others else 0
        padded = torch.cat([*read, mine.new_zeros(len(mine), self.padding)], 1)
        self.weight = nn.Parameter(padded)
        # Partial logits are summed: the first part adds the bias.
        self.bias = nn.Parameter(bias[kept].clone() if rows is not None or number == 0 else torch.zeros_like(bias))

    def forward(self, values: list[Tensor]) -> Tensor:
        """Values of all parts, each (B, I of it) -> (B, O of this part)."""
        own = values[0] if self.whole else values[self.number]
        halo = [values[other].index_select(1, taken) for other, taken in zip(self.others, self.taken, strict=True)]
        zeros = [own.new_zeros(own.shape[0], self.padding)] if self.padding else []
        joined = torch.cat([own, *halo, *zeros], 1) if self.others else own
        return linear(joined, self.weight, self.bias)
