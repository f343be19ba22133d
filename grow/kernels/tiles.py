"""Tiles of the batch, as the compiled kernel cuts it: what one holds, and what a batch costs in them.

The last tile of a batch is computed whole, however little of it is filled, so that 129 samples take as long as 192.
"""

from __future__ import annotations

from math import ceil
from typing import TypeAlias

from grow.kernels import registers

Tiles: TypeAlias = tuple[int, ...]
"""What one feature of a tile may take, in bytes, the longest first."""

WIDE: Tiles = (512, 256, 64)
"""With AVX-512. The gradients hold two such rows, at most 16 of 32 registers."""

NARROW: Tiles = (256, 64)
"""With AVX2 or NEON. A row of the output takes half of the registers; where it takes all, forward takes 1.5 times as long (Zen 3)."""

CONNECTION_BYTES = 256
"""A connection's index and value cost as much as so many bytes of its tile, whatever the tile's length."""


def tiles_here() -> Tiles:
    """Those of this machine."""
    return WIDE if registers.wide() else NARROW


def tile_bytes(batch: int, element_size: int, tiles: Tiles) -> int:
    """The tile that suits a batch: wide ones cost less per sample, but may be filled badly.

    >>> [tile_bytes(batch, 4, WIDE) for batch in (16, 64, 128, 192)]
    [64, 256, 512, 512]
    >>> [tile_bytes(batch, 4, NARROW) for batch in (16, 64, 128, 192)]
    [64, 256, 256, 256]
    """
    return min(tiles, key=lambda tile: _cost(batch, element_size, tile))


def batch_cost(batch: float, element_size: int, tiles: Tiles) -> int:
    """What a connection costs in all tiles of a batch, in bytes that go through registers.

    >>> [batch_cost(batch, 4, WIDE) for batch in (64, 128, 129, 192, 256)]
    [512, 768, 1536, 1536, 1536]
    """
    return min(_cost(batch, element_size, tile) for tile in tiles)


def fills_tiles(batch: float, element_size: int, tiles: Tiles) -> bool:
    """Whether a batch fills its tiles, or is copied into such as it does not fill.

    >>> [fills_tiles(batch, 4, WIDE) for batch in (16, 32, 64, 96, 128, 192)]
    [True, False, True, False, True, False]
    """
    return batch * element_size % tile_bytes(ceil(batch), element_size, tiles) == 0


def _cost(batch: float, element_size: int, tile: int) -> int:
    return ceil(batch * element_size / tile) * (tile + CONNECTION_BYTES)
