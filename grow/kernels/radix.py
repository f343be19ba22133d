"""RadiX-Net layers as batched dense products: sums of shifted, Kronecker-blocked products (Robinett and Kepner 2019, 1905.00416).

Entry e of either side stands at place e mod N' of a circle. Target place i reads the source places i - a, i - a - s, i - a - 2s, ...,
``radix`` of them with stride s, and nodes are joined as their places are. Followed in steps of the stride, the places of the circle
fall into chains; a *tile* of neighbours in a chain reads a window of neighbours, so that a layer is one dense product a tile::

    radix 2, stride 2, N' = 8:     chain 0 2 4 6     targets 0 and 2 read the window 6 0 2
                                   chain 1 3 5 7     targets 1 and 3 read the window 7 1 3

Where a place has nodes enough, it is a tile by itself and the product has no zeros. Where it has few, some zeros are multiplied.

Legend: B batch, O / I target and source entries, E connections, N' places, G tiles, R / C rows and columns of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from grow.axes import IntArray
from grow.kernels.base import Kernel, Product, UnfitStructureError

TILE_ROWS = 16
"""Rows that a tile should have: products with fewer are slow in proportion."""

READ_PRODUCTS = 50
"""Multiplications that take as long as gathering one value for a tile does."""


@dataclass(frozen=True)
class Circle:
    """The rule of a layer: target place i reads the source places i - first - n stride mod ``places``, n = 0 .. radix - 1."""

    places: int
    radix: int
    stride: int
    first: int

    def transposed(self) -> Circle:
        """The rule by which source places are read: i + first + n stride."""
        return Circle(self.places, self.radix, self.stride, -(self.first + (self.radix - 1) * self.stride) % self.places)

    def sources(self, places: IntArray, count: int) -> IntArray:
        """The ``count`` source places from the first on that target places read, one more stride back each, (P,) -> (P, count)."""
        return (places[:, None] - self.first - np.arange(count) * self.stride) % self.places


def circle_of(positions: IntArray, shape: tuple[int, int]) -> Circle | None:
    """The rule of a layer (O, I) with connections at sorted flat positions (E,); None if it is none of a RadiX-Net.

    Widths need not be multiples of N': the last copy of the circle may be cut short, as it is in `grow.seeds.radixnet`.

    >>> circle_of(np.array([0, 3, 4, 5, 9, 10, 14, 15]), (4, 4))  # each target reads its own place and the one before
    Circle(places=4, radix=2, stride=1, first=0)
    """
    if not len(positions) or not _shifted(positions, shape):
        return None
    rows, columns = np.divmod(positions, shape[1])
    periods = {_period(rows, columns, shape[0]), _period(columns, rows, shape[1])}
    for places in sorted(periods | ({shape[0]} if shape[0] == shape[1] else set())):
        if places <= max(shape) and (found := _rule(rows, columns, shape, places)) is not None:
            return found
    return None


def _shifted(positions: IntArray, shape: tuple[int, int]) -> bool:
    """Whether the second row reads the next one of all that the first row reads, as in every circle: tells most structures at once."""
    first, second = (positions[slice(*np.searchsorted(positions, [row * shape[1], (row + 1) * shape[1]]))] for row in (0, 1))
    next_ones = first + 1
    return shape[0] == 1 or bool(np.isin(next_ones[next_ones < shape[1]] + shape[1], second).all())


def _period(lines: IntArray, entries: IntArray, length: int) -> int:
    """After how many lines of a matrix the same entries come again; ``length`` if they never do. Exact but for collisions of a hash."""
    drawn = np.random.default_rng(0).integers(2**63, size=int(entries.max(initial=0)) + 1, dtype=np.uint64)
    hashes = np.zeros(length, np.uint64)
    np.add.at(hashes, lines, drawn[entries])
    for period in np.flatnonzero(hashes[1:] == hashes[0]) + 1:
        if np.array_equal(hashes[period:], hashes[:-period]):
            return int(period)
    return length


def _rule(rows: IntArray, columns: IntArray, shape: tuple[int, int], places: int) -> Circle | None:
    """The rule on so many places, if it gives exactly these connections."""
    counts = np.bincount((rows - columns) % places, minlength=places)
    steps = np.flatnonzero(counts)  # (radix,)
    targets, sources = (np.bincount(np.arange(length) % places, minlength=places) for length in shape)
    possible = sum(int(targets @ np.roll(sources, step)) for step in steps.tolist()) if len(steps) * places <= 4 * len(rows) else -1
    if possible != len(rows):  # connections are distinct and all are of these steps: as many as there can be are all of them
        return None
    gaps = np.diff(steps, append=steps[0] + places)  # (radix,), round the circle: all are the stride but the widest
    first = (int(gaps.argmax()) + 1) % len(steps)
    stride = int(gaps[first]) if len(steps) > 1 else 1
    if (np.delete(gaps, first - 1) != stride).any():
        return None
    return Circle(places, len(steps), stride, int(steps[first]))


@dataclass(frozen=True, eq=False)
class Wiring:
    """A rule, and where target entries (O,) and source entries (I,) stand in the order for which it holds; None: in their own."""

    circle: Circle
    targets: IntArray | None = None
    sources: IntArray | None = None


def wiring_of(positions: IntArray, shape: tuple[int, int]) -> Wiring | None:
    """The wiring of a layer (O, I) with connections at sorted flat positions (E,), its nodes in whatever order; None if it is none."""
    circle = circle_of(positions, shape)
    return _permuted(positions, shape) if circle is None else Wiring(circle)


def _permuted(positions: IntArray, shape: tuple[int, int]) -> Wiring | None:
    """The order of the nodes in which a layer is a RadiX-Net's, where every place has as many nodes as every other.

    Nodes of one place have the same neighbours. Of the places that are left, targets next to each other in a chain share all
    sources but one, so that a walk from neighbour to neighbour finds the chain.
    """
    fan_in = len(positions) // shape[0]
    if not fan_in or len(positions) % shape[0] or len(positions) % shape[1]:
        return None
    lines = positions.reshape(shape[0], fan_in)
    if (lines[:, [0, -1]] // shape[1] != np.arange(shape[0])[:, None]).any():  # rows of different length
        return None
    columns = lines % shape[1]  # (O, fan-in)
    target_place, copies = _places(columns.reshape(-1), np.repeat(np.arange(shape[0]), fan_in), shape[0])
    source_place, widths = _places(np.repeat(np.arange(shape[0]), fan_in), columns.reshape(-1), shape[1])
    count = shape[0] // copies if copies else 0
    if not copies or not widths or count * widths != shape[1] or fan_in % widths:
        return None
    one = np.zeros(count, np.int64)
    one[target_place] = np.arange(shape[0])
    read = np.sort(source_place[columns[one]], axis=1).reshape(count, -1, widths)  # (places, radix, widths)
    if (read != read[:, :, :1]).any():
        return None
    found = _chained(read[:, :, 0])
    if found is None:
        return None
    circle, targets, sources = found
    return Wiring(circle, _stands(targets[target_place], count), _stands(sources[source_place], count))


def _places(others: IntArray, lines: IntArray, count: int) -> tuple[IntArray, int]:
    """The number of each line's place, (count,), and how many lines each place has; 0 if not all have as many.

    Lines with the same connections are of one place. Exact but for collisions of a hash.
    """
    drawn = np.random.default_rng(0).integers(2**63, size=int(others.max(initial=0)) + 1, dtype=np.uint64)
    hashes = np.zeros(count, np.uint64)
    np.add.at(hashes, lines, drawn[others])
    _, place, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    return place, int(sizes[0]) if (sizes == sizes[0]).all() else 0


def _stands(places: IntArray, count: int) -> IntArray:
    """Where entries stand if those of every one of ``count`` places are dealt out, one a round."""
    order = np.argsort(places, kind="stable")
    stands = np.empty(len(places), np.int64)
    stands[order] = np.arange(len(places)) % (len(places) // count) * count + places[order]
    return stands


def _chained(read: IntArray) -> tuple[Circle, IntArray, IntArray] | None:
    """The rule of target places that read so many source places each, (N', radix), and their and the sources' numbers in it, (N',)."""
    count, radix = read.shape
    chains = _chains(read) if radix > 1 else [[place] for place in range(count)]
    if len({len(chain) for chain in chains}) != 1:
        return None
    of = np.array(chains)  # (chains, length)
    targets, sources = np.empty(count, np.int64), np.full(count, -1)
    targets[of] = np.arange(len(of))[:, None] + np.arange(of.shape[1]) * len(of)
    for chain in chains:
        for before, place in zip([chain[-1], *chain[:-1]], chain, strict=True):
            new = set(read[place].tolist()).difference(read[before].tolist() if radix > 1 else ())
            if len(new) != 1:
                return None
            sources[new.pop()] = targets[place]
    circle = Circle(count, radix, len(of) if radix > 1 else 1, 0)
    steps = (targets[:, None] - sources[read]) % count  # (N', radix)
    if (sources < 0).any() or (steps % circle.stride).any() or (steps // circle.stride >= radix).any():
        return None
    return circle, targets, sources


def _chains(read: IntArray) -> list[list[int]]:
    """Target places from neighbour to neighbour, which share all of their sources but one."""
    count, radix = read.shape
    reads = csr_array((np.ones(read.size, np.int64), read.reshape(-1), np.arange(0, read.size + 1, radix)), shape=(count, count))
    shared = (reads @ reads.T).tocoo()
    neighbours = (shared.data == radix - 1) & (shared.row != shared.col)
    near = [list[int]() for _ in range(count)]
    for one, other in zip(shared.row[neighbours].tolist(), shared.col[neighbours].tolist(), strict=True):
        near[one].append(other)
    chains, left = list[list[int]](), set(range(count))
    for start in range(count):
        place, chain = (start if start in left else None), list[int]()
        while place is not None:
            chain.append(place)
            left.discard(place)
            place = next((other for other in near[place] if other in left), None)
        if chain:
            chains.append(chain)
    return chains


@dataclass(frozen=True, eq=False)
class Tiles:
    """A matrix (O, I) as G dense tiles (R, C): which sources each reads, where the values stand in them, and the rows in what they give."""

    shape: tuple[int, int, int]  # (G, R, C)
    columns: Tensor  # (G * C,)
    slots: Tensor  # (E,) in (G * R * C)
    rows: Tensor | None  # (O,) in (G * R), None where they stand in order

    @staticmethod
    def of(circle: Circle, rows: IntArray, columns: IntArray, shape: tuple[int, int]) -> Tiles:
        """Tiles of the rule's connections at these rows and columns, both (E,)."""
        copies, widths = (-(-length // circle.places) for length in shape)
        chains = gcd(circle.stride, circle.places)
        length = circle.places // chains  # of a chain
        depth = _depth(circle.radix, length, copies, widths)
        window = min(length, depth + circle.radix - 1)
        tiles = circle.places // depth
        chained = (np.arange(chains)[:, None] + np.arange(length) * circle.stride) % circle.places  # (chains, length)
        at = np.empty(circle.places, np.int64)
        at[chained] = np.arange(circle.places).reshape(chains, length)  # where a place stands, chain by chain
        read = circle.sources(chained.reshape(tiles, depth)[:, -1], window)  # (G, window), from the last target's first source back
        height, width = copies * depth, widths * window

        def row(entries: IntArray) -> IntArray:
            """Where target entries stand in (G * R)."""
            copy, place = np.divmod(entries, circle.places)
            stand: IntArray = at[place] // depth * height + copy * depth + at[place] % depth
            return stand

        last = at[rows % circle.places] // depth * depth + depth - 1  # (E,), the last target of each one's tile
        back = (last - at[(columns + circle.first) % circle.places]) % length
        slots = row(rows) * width + columns // circle.places * window + back
        stands = row(np.arange(shape[0]))
        entries = np.arange(widths)[:, None] * circle.places + read[:, None, :]  # (G, widths, window)
        return Tiles(
            (tiles, height, width),
            torch.from_numpy(np.where(entries < shape[1], entries, 0).reshape(-1)),  # what a cut copy lacks has no connections
            torch.from_numpy(slots),
            None if tiles * height == shape[0] and np.array_equal(stands, np.arange(shape[0])) else torch.from_numpy(stands),
        )

    @staticmethod
    def both(wiring: Wiring, rows: IntArray, columns: IntArray, shape: tuple[int, int]) -> tuple[Tiles, Tiles]:
        """Tiles of a layer's connections at these rows and columns, both (E,), and of its transpose."""
        circle, targets, sources = wiring.circle, wiring.targets, wiring.sources
        if targets is None or sources is None:
            return Tiles.of(circle, rows, columns, shape), Tiles.of(circle.transposed(), columns, rows, (shape[1], shape[0]))
        rows, columns = targets[rows], sources[columns]
        forwards, backwards = Tiles.both(Wiring(circle), rows, columns, shape)
        return forwards.renamed(targets, sources), backwards.renamed(sources, targets)

    def renamed(self, targets: IntArray, sources: IntArray) -> Tiles:
        """The same for entries that stand elsewhere: (O,) and (I,), where in the order of these tiles."""
        entries = torch.from_numpy(np.argsort(sources))
        stands = torch.from_numpy(targets)
        return Tiles(self.shape, entries[self.columns], self.slots, stands if self.rows is None else self.rows[stands])

    def to(self, device: torch.device) -> Tiles:
        """The same on a device."""
        return Tiles(self.shape, self.columns.to(device), self.slots.to(device), None if self.rows is None else self.rows.to(device))

    def filled(self, values: Tensor) -> Tensor:
        """Values (E,) in their tiles, (G, R, C)."""
        tiles = values.new_zeros(self.shape)
        tiles.view(-1).index_copy_(0, self.slots, values)
        return tiles

    def read(self, features: Tensor) -> Tensor:
        """What each tile reads, (I, B) -> (G, C, B)."""
        return features.index_select(0, self.columns).view(self.shape[0], self.shape[2], -1)

    def joined(self, outputs: Tensor) -> Tensor:
        """What the tiles give, (G, R, B) -> (O, B)."""
        flat = outputs.view(self.shape[0] * self.shape[1], -1)
        return flat if self.rows is None else flat.index_select(0, self.rows)

    def own(self, upstream: Tensor) -> Tensor:
        """Gradients of the output for each tile, (O, B) -> (G, R, B)."""
        if self.rows is not None:
            spread = upstream.new_zeros(self.shape[0] * self.shape[1], upstream.shape[1])
            upstream = spread.index_copy_(0, self.rows, upstream)
        return upstream.view(*self.shape[:2], -1)


def _depth(radix: int, length: int, copies: int, widths: int) -> int:
    """Places of a tile, a divisor of the chain's length: more of them multiply more zeros, fewer read every source more often."""

    def cost(depth: int) -> float:
        """Time for one row of one sample of a tile, in units of what it takes to read 4 bytes."""
        few = max(1.0, TILE_ROWS / (depth * copies))
        return (depth + radix - 1) * (widths * few / READ_PRODUCTS + 1 / depth)

    return min((depth for depth in range(1, min(2 * radix, length) + 1) if length % depth == 0), key=cost)


class RadixProduct(torch.autograd.Function):
    """``y = W x``, feature-major. Gradients of x go by the tiles of the transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, tiles: Tiles, transposed: Tiles) -> Tensor:
        """Features (I, B) and values (E,) -> (O, B)."""
        features = x.contiguous()
        ctx.save_for_backward(features, values)
        ctx.tiles, ctx.transposed = tiles, transposed
        return tiles.joined(torch.bmm(tiles.filled(values), tiles.read(features)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients of the features (I, B) and the values (E,)."""
        features, values = ctx.saved_tensors
        tiles, transposed = ctx.tiles, ctx.transposed
        upstream, grad_x, grad_values = gradients[0].contiguous(), None, None
        if ctx.needs_input_grad[0]:
            grad_x = transposed.joined(torch.bmm(transposed.filled(values), transposed.read(upstream)))
        if ctx.needs_input_grad[1]:
            grad_values = torch.bmm(tiles.own(upstream), tiles.read(features).transpose(1, 2)).view(-1).index_select(0, tiles.slots)
        return grad_x, grad_values, None, None


def fits(positions: Tensor | None, shape: tuple[int, int]) -> bool:
    """Whether a layer has the structure of a RadiX-Net's."""
    return positions is not None and wiring_of(positions.cpu().numpy(), shape) is not None


def prepare(positions: Tensor | None, shape: tuple[int, int]) -> Product:
    """Product with values (E,). UnfitStructureError where the layer is none of a RadiX-Net."""
    flat = None if positions is None else positions.cpu().numpy()
    wiring = None if flat is None else wiring_of(flat, shape)
    if positions is None or flat is None or wiring is None:
        held = "no positions" if flat is None else f"{len(flat)} positions"
        raise UnfitStructureError(
            f"the radix kernel was given {held} of a layer {shape}, but needs those of a RadiX-Net layer; use csr for other structures"
        )
    rows, columns = np.divmod(flat, shape[1])
    tiles, transposed = (found.to(positions.device) for found in Tiles.both(wiring, rows, columns, shape))

    def product(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = RadixProduct.apply(x.t(), values, tiles, transposed).t()  # type: ignore[no-untyped-call]
        return y if bias is None else y + bias

    return product


RADIX = Kernel(
    "radix", "compressed", frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16}), prepare, fits, made_for=fits
)
