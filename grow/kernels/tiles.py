"""Tiles of the batch, as the compiled kernel cuts it: what one holds, and what a batch costs in them.

The last tile of a batch is computed whole, however little of it is filled, so that 129 samples take as long as 192.
"""

from __future__ import annotations

from math import ceil

TILE_BYTES = (512, 256, 64)
"""What one feature of a tile may take. The gradients hold two such rows, at most 16 of the 32 registers of AVX-512."""

CONNECTION_BYTES = 256
"""A connection's index and value cost as much as so many bytes of its tile, whatever the tile's length."""


def tile_bytes(batch: int, element_size: int) -> int:
    """The tile that suits a batch: wide ones cost less per sample, but may be filled badly.

    >>> [tile_bytes(batch, 4) for batch in (16, 64, 128, 192)]
    [64, 256, 512, 512]
    """
    return min(TILE_BYTES, key=lambda tile: _cost(batch, element_size, tile))


def batch_cost(batch: float, element_size: int) -> int:
    """What a connection costs in all tiles of a batch, in bytes that go through registers.

    >>> [batch_cost(batch, 4) for batch in (64, 128, 129, 192, 256)]
    [512, 768, 1536, 1536, 1536]
    """
    return min(_cost(batch, element_size, tile) for tile in TILE_BYTES)


def fills_tiles(batch: float, element_size: int) -> bool:
    """Whether a batch fills its tiles, or is copied into such as it does not fill.

    >>> [fills_tiles(batch, 4) for batch in (16, 32, 64, 96, 128, 192)]
    [True, False, True, False, True, False]
    """
    return batch * element_size % tile_bytes(ceil(batch), element_size) == 0


def _cost(batch: float, element_size: int, tile: int) -> int:
    return ceil(batch * element_size / tile) * (tile + CONNECTION_BYTES)
