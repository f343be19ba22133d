"""Dropout whose draws depend on what is dropped alone, so that every division of a network drops the same.

An element is kept by a hash of (seed, step, layer, sample, entry): SplitMix64's output at that counter (Steele, Lea, Flood 2014,
"Fast splittable pseudorandom number generators", OOPSLA, figure 13), in 64-bit integers that wrap around.

Legend: B samples of this rank, E entries of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from hardware.execute.exchange import Peers
from hardware.execute.moves import Batch

_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def stream(*keys: int) -> int:
    """A 64-bit number that depends on all keys, in their order.

    >>> stream(0, 1) == stream(0, 1), stream(0, 1) == stream(1, 0)
    (True, False)
    """
    state = 0
    for key in keys:
        state = (state ^ (key & _WORD)) + _GAMMA & _WORD
        state = (state ^ state >> 30) * _FIRST & _WORD
        state = (state ^ state >> 27) * _SECOND & _WORD
        state ^= state >> 31
    return state


def hashed(counter: Tensor, key: int) -> Tensor:
    """Numbers in 0 .. 2^53 - 1 that look random, one per 64-bit counter; the same on every device."""
    state = counter * _signed(_GAMMA) + _signed(key)
    state = (state ^ (state >> 30 & (1 << 34) - 1)) * _signed(_FIRST)  # torch shifts the sign in: it is masked off
    state = (state ^ (state >> 27 & (1 << 37) - 1)) * _signed(_SECOND)
    return (state ^ (state >> 31 & (1 << 33) - 1)) >> 11 & (1 << 53) - 1


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


@dataclass(frozen=True, eq=False)
class Elements:
    """Which elements of a value this rank holds.

    samples: the dimension of samples; divided: of which it has its own alone. entries: of a dimension of which it holds a choice,
    that choice; sizes: how many there are of it in all.
    """

    samples: int
    divided: bool
    entries: Mapping[int, Tensor]
    sizes: Mapping[int, int]


class DrawnDropout(nn.Module):
    """Dropout of single entries or, ``channels``, of whole feature maps: what is kept is scaled by 1 / (1 - p).

    Srivastava et al. 2014, JMLR 15. seed, number: which dropout of the network it is, so that no two draw alike.
    """

    def __init__(self, p: float, channels: bool, seed: int, number: int, held: Elements, batch: Batch, peers: Peers) -> None:
        super().__init__()
        self.p, self.channels, self.seed, self.number = p, channels, seed, number
        self.held, self.batch, self.peers = held, batch, peers
        self._counter: tuple[object, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """X (B, E) -> (B, E)."""
        if not self.training or self.p == 0:
            return x
        if self.p == 1:
            return x * 0
        drawn = hashed(self._count(x), stream(self.seed, self.batch.step, self.number))
        return x * ((drawn >= round(self.p * (1 << 53))).to(x.dtype) / (1 - self.p))

    def _count(self, x: Tensor) -> Tensor:
        """The number of every element in the whole batch, (B, E); kept for batches of the same size."""
        key = (tuple(x.shape), self.batch.samples, x.device)
        if self._counter is None or self._counter[0] != key:
            self._counter = key, self._numbered(x)
        return self._counter[1]

    def _numbered(self, x: Tensor) -> Tensor:
        kept = [dim for dim in range(x.dim()) if dim != self.held.samples and not (self.channels and dim > 1)]
        sizes = [self.held.sizes.get(dim, x.shape[dim]) for dim in kept]
        start = self.peers.bounds(self.batch.samples)[self.peers.rank] if self.held.divided else 0
        number = torch.arange(start, start + x.shape[self.held.samples], device=x.device) * prod(sizes)
        number = number.view([-1 if dim == self.held.samples else 1 for dim in range(x.dim())])
        for place, dim in enumerate(kept):
            entries = self.held.entries[dim].to(x.device) if dim in self.held.entries else torch.arange(x.shape[dim], device=x.device)
            number = number + (entries * prod(sizes[place + 1 :])).view([-1 if other == dim else 1 for other in range(x.dim())])
        return number
