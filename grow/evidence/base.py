"""Evidence about the layers of a network, handed out in blocks of rows, so that nothing as large as the dense weight need exist.

Legend: R rows of a block, O / I target and source entries of a weight (O, I, *kernel), E connections of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from grow.axes import IntArray
from grow.evidence.products import Products
from grow.layers import SparseConv2d, SparseLinear, expand
from grow.topology import Topology

Need: TypeAlias = Literal[
    "gradient",
    "momentum",
    "curvature",
    "fisher",
    "mc_fisher",
    "hutchinson",
    "taylor",
    "hessian_gradient",
    "synflow",
    "movement",
    "smoothed",
    "parts",
]
Layer: TypeAlias = SparseLinear | SparseConv2d

BLOCK_VALUES = 2**18
"""Values of a block of rows, 1 MiB in float32: what is computed of them stays in the cache."""


@dataclass(frozen=True)
class Effort:
    """How much is spent on an estimate.

    probes: random vectors per batch (Hutchinson) or labels drawn per sample (Monte-Carlo Fisher). decay: of the momentum, from
    one batch to the next.
    """

    probes: int = 1
    decay: float = 0.9

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"probes is {self.probes}, but must be at least 1")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay}, but must be in [0, 1)")


@dataclass(frozen=True, eq=False)
class LayerEvidence:
    """Evidence about some rows of one layer; every tensor has the shape (R, I, *kernel), absent connections included.

    weight: zero where no connection exists, made when it is asked for. found: what was gathered, by need:

    - gradient: of the mean loss. momentum: the batches' gradients, the last one whole, each earlier one times ``Effort.decay``;
    - curvature: diagonal of the Gauss-Newton matrix of the mean loss. fisher, mc_fisher: its estimates by squared gradients of
      single samples, with their own labels (empirical Fisher) or labels drawn from the outputs (Monte-Carlo);
    - parts: nothing here; that the network's units are assigned to parts, `Evidence.parts`;
    - for existing connections only, zero elsewhere: hutchinson, a random estimate of the Hessian's diagonal, which may be
      negative; taylor, the mean over the batches of |g w|; hessian_gradient, the Hessian times the gradient; synflow, dR/dw w;
      movement, what a `grow.movement.Movement` has accumulated; smoothed, a criterion's scores over several updates.

    generator: for criteria that draw. layer, rows: which rows (R,) of which layer these are.
    """

    given: Tensor | Callable[[], Tensor]  # the weight, or what makes it of the layer's values when it is asked for
    found: Mapping[Need, Tensor]
    generator: torch.Generator
    layer: str = ""
    rows: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))

    @cached_property
    def weight(self) -> Tensor:
        """Weights of the rows, zero where no connection exists."""
        return self.given if isinstance(self.given, Tensor) else self.given()

    def __getitem__(self, need: Need) -> Tensor:
        if need not in self.found:
            held = ", ".join(self.found) or "nothing"
            raise ValueError(f"evidence holds {held}, but must hold {need!r}; name it among the needs of the criterion")
        return self.found[need]


@dataclass(frozen=True, eq=False)
class Block:
    """Evidence about some rows of a layer: ``rows`` (R,) in ascending order."""

    rows: IntArray
    evidence: LayerEvidence


@dataclass(frozen=True, eq=False)
class Evidence:
    """Evidence about the layers of a network as it was when gathered. An edit makes it void.

    sums: evidence about all connections, by layer and need. stored: evidence about the existing ones, in the layer's storage.
    seeds: for criteria that draw, by layer. more: gathers other evidence from the same batches, for these rows of these layers only.
    rows: the rows of a layer that evidence was gathered for, None for all.
    """

    topology: Topology
    layers: Mapping[str, Layer]
    parts: Mapping[str, IntArray] | None
    needs: frozenset[Need]
    sums: Mapping[str, Mapping[Need, Products]]
    stored: Mapping[str, Mapping[Need, Tensor]]
    seeds: Mapping[str, int]
    more: Callable[[frozenset[Need], Mapping[str, IntArray | None]], Evidence]
    rows: Mapping[str, IntArray | None] = field(default_factory=dict)

    def layer(self, name: str) -> LayerEvidence:
        """Evidence about all rows of a layer at once."""
        (block,) = self.blocks(name, prod(self.topology.layer(name).shape) + 1)
        return block.evidence

    def connections(self, name: str) -> LayerEvidence:
        """What is stored of a layer's existing connections: every tensor has the shape (E,), in the order of their positions."""
        layer = self.layers[name]

        def existing(values: Tensor) -> Tensor:
            flat = values.reshape(-1)
            return flat if layer.storage == "compressed" or layer.positions is None else flat.index_select(0, layer.positions)

        found = {need: existing(values) for need, values in self.stored.get(name, {}).items()}
        generator = torch.Generator().manual_seed(self.seeds[name])
        return LayerEvidence(existing(layer.weight.detach()), found, generator, name)

    def blocks(self, name: str, values: int | None = None, multiple: int = 1) -> Iterator[Block]:
        """Evidence about a layer, a block of rows at a time, in the order of the rows; at least one block, empty if need be.

        A block has about ``values`` values (`BLOCK_VALUES` unless told), in whole multiples of ``multiple`` rows. What a criterion draws
        depends on neither, and is the same every time that the layer is gone through.
        """
        layer = self.layers[name]
        chosen = self.rows.get(name)
        held = np.arange(layer.weight_shape[0]) if chosen is None else chosen
        size = max(1, (BLOCK_VALUES if values is None else values) // max(1, prod(layer.weight_shape[1:])))
        size = -(-size // multiple) * multiple
        generator = torch.Generator().manual_seed(self.seeds[name])
        for start in range(0, max(1, len(held)), size):
            yield Block(held[start : start + size], self._layer_evidence(name, layer, held, start, start + size, generator))

    def _layer_evidence(self, name: str, layer: Layer, held: IntArray, start: int, stop: int, generator: torch.Generator) -> LayerEvidence:
        rows = held[start:stop]
        found: dict[Need, Tensor] = {need: products.rows(start, stop) for need, products in self.sums.get(name, {}).items()}
        for need, values in self.stored.get(name, {}).items():
            found[need] = expand_rows(layer, values, rows)
        return LayerEvidence(lambda: expand_rows(layer, layer.weight.detach(), rows), found, generator, name, rows)


def expand_rows(layer: Layer, values: Tensor, rows: IntArray) -> Tensor:
    """Rows (R, I, *kernel) of what a layer stores, zero where no connection exists."""
    shape = (len(rows), *layer.weight_shape[1:])
    contiguous = not len(rows) or int(rows[-1]) - int(rows[0]) + 1 == len(rows)
    if layer.storage == "dense":
        first = int(rows[0]) if len(rows) else 0
        return values[first : first + len(rows)] if contiguous else values[torch.from_numpy(rows).to(values.device)]
    assert layer.positions is not None
    width = prod(shape[1:])
    dense = values.new_zeros(len(rows) * width)
    if not len(rows) or not width:
        return dense.reshape(shape)
    bounds = torch.tensor([int(rows[0]) * width, (int(rows[-1]) + 1) * width], device=values.device)
    low, high = (int(bound) for bound in torch.searchsorted(layer.positions, bounds))
    positions, inside = layer.positions[low:high], values[low:high]
    if contiguous:
        dense[positions - int(rows[0]) * width] = inside
        return dense.reshape(shape)
    wanted = torch.from_numpy(rows).to(values.device)
    slot = torch.searchsorted(wanted, positions // width)  # never beyond the last, since positions end within it
    hit = wanted[slot] == positions // width
    dense[(slot * width + positions % width)[hit]] = inside[hit]
    return dense.reshape(shape)


def to_storage(layer: Layer, blocks: Iterable[Tensor]) -> Tensor:
    """What a layer would store of blocks of rows (R, I, *kernel) that together are all of its rows; zero where no connection exists."""
    kept, start = [], 0
    for block in blocks:
        flat = block.reshape(-1)
        if layer.positions is not None:
            low, high = (int(b) for b in torch.searchsorted(layer.positions, torch.tensor([start, start + len(flat)]).to(flat.device)))
            flat = flat[layer.positions[low:high] - start]
        kept.append(flat)
        start += block.numel()
    values = torch.cat(kept)
    return values if layer.storage == "compressed" else expand(values, layer.positions, layer.weight_shape)
