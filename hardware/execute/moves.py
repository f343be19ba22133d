"""How a value changes its layout on the way to a layer: one move for each entry of the table in `hardware.transitions`.

A move is a linear map between what the ranks hold; its backward is the transpose. Gradients of whole values are the same on
every rank once they have passed a move, those of all other values are those of the rank's own share.

Legend: B batch, B_r samples of rank r, S entries (units times repeat) held by this rank, H those of its halo, L all, k ranks.
Shapes show samples and entries; other dimensions (positions) stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hardware.execute.exchange import HaloPlan, Peers, Pending, resized


@dataclass
class Batch:
    """The batch that the modules of one rank compute now: its samples over all ranks, and the step that it belongs to."""

    samples: int = 0
    step: int = 0


class Move(Protocol):
    """A linear map between what the ranks hold, and its transpose."""

    def forward(self, x: Tensor) -> Tensor:
        """What this rank holds afterwards."""

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradient of what it held before."""


class Moved(nn.Module):
    """A module that does one move."""

    def __init__(self, move: Move) -> None:
        super().__init__()
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        """X of this rank before the move -> after it."""
        out: Tensor = _Apply.apply(x, self.move)  # type: ignore[no-untyped-call]
        return out


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, move: Move) -> Tensor:
        ctx.move = move
        return move.forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.move.backward(gradients[0]), None


@dataclass(frozen=True)
class ScatterSamples:
    """whole -> batch: (B, ...) -> (B_r, ...). Backward: every rank gets the gradient of all samples."""

    peers: Peers
    batch: Batch
    dim: int

    def forward(self, x: Tensor) -> Tensor:
        """The samples of this rank."""
        start, end = self.peers.bounds(self.batch.samples)[self.peers.rank : self.peers.rank + 2]
        return x.narrow(self.dim, start, end - start)

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradients of all ranks, joined."""
        return self.peers.join(gradient, self.batch.samples, self.dim)


@dataclass(frozen=True)
class GatherSamples:
    """batch -> whole: (B_r, ...) -> (B, ...). Backward: the own part of a gradient that all ranks have."""

    peers: Peers
    batch: Batch
    dim: int

    def forward(self, x: Tensor) -> Tensor:
        """The samples of all ranks, joined."""
        return self.peers.join(x, self.batch.samples, self.dim)

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradient of the own samples."""
        return ScatterSamples(self.peers, self.batch, self.dim).forward(gradient)


@dataclass(frozen=True)
class SumGradient:
    """whole -> units: every rank goes on with all values, its gradient is a summand. Backward: their sum."""

    peers: Peers

    def forward(self, x: Tensor) -> Tensor:
        """The same."""
        return x.view_as(x)

    def backward(self, gradient: Tensor) -> Tensor:
        """The sum over the ranks."""
        return self.peers.sum(gradient)


@dataclass(frozen=True)
class SumParts:
    """units -> whole: partial results -> their sum. Backward: the gradient of the sum, which every rank has, is that of each part."""

    peers: Peers

    def forward(self, x: Tensor) -> Tensor:
        """The sum over the ranks."""
        return self.peers.sum(x)

    def backward(self, gradient: Tensor) -> Tensor:
        """The same."""
        return gradient


@dataclass(frozen=True, eq=False)
class ToUnits:
    """batch -> units: (B_r, L) -> (B, H), the entries that this rank reads, of all samples.

    reads: for every rank, the entries that it reads. width: L, all of them. dim, at: dimensions of samples and of entries.
    """

    peers: Peers
    batch: Batch
    dim: int
    at: int
    reads: tuple[Tensor, ...]
    width: int

    def forward(self, x: Tensor) -> Tensor:
        """Every rank gets the entries that it reads."""
        peers, bounds = self.peers, self.peers.bounds(self.batch.samples)
        mine = x.index_select(self.at, self.reads[peers.rank])
        handed = [None if rank == peers.rank else x.index_select(self.at, reads) for rank, reads in enumerate(self.reads)]
        sizes = [end - start for start, end in pairwise(bounds)]
        return torch.cat(_swap(peers, mine, handed, [resized(mine, self.dim, size) for size in sizes]), self.dim)

    def backward(self, gradient: Tensor) -> Tensor:
        """Gradients go back to the ranks of the samples, and are added up there."""
        peers, bounds = self.peers, self.peers.bounds(self.batch.samples)
        sections = _sections(gradient, self.dim, bounds)
        mine = sections[peers.rank]
        shapes = [resized(mine, self.at, len(reads)) for reads in self.reads]
        handed = [None if rank == peers.rank else section for rank, section in enumerate(sections)]
        total = gradient.new_zeros(resized(mine, self.at, self.width))
        for reads, section in zip(self.reads, _swap(peers, mine, handed, shapes), strict=True):
            total.index_add_(self.at, reads, section)
        return total


@dataclass(frozen=True, eq=False)
class ToSamples:
    """units -> batch: (B, S) -> (B_r, L), all entries of this rank's samples; those that nobody reads stay zero.

    entries: for every rank, those of its own entries that are read. positions: where this rank's lie in the S that it holds.
    width: L. dim, at: dimensions of samples and of entries.
    """

    peers: Peers
    batch: Batch
    dim: int
    at: int
    entries: tuple[Tensor, ...]
    positions: Tensor
    held: int
    width: int

    def forward(self, x: Tensor) -> Tensor:
        """Every rank gets its samples of all entries."""
        peers, bounds = self.peers, self.peers.bounds(self.batch.samples)
        sections = _sections(x.index_select(self.at, self.positions), self.dim, bounds)
        mine = sections[peers.rank]
        shapes = [resized(mine, self.at, len(entries)) for entries in self.entries]
        handed = [None if rank == peers.rank else section for rank, section in enumerate(sections)]
        whole = x.new_zeros(resized(mine, self.at, self.width))
        for entries, section in zip(self.entries, _swap(peers, mine, handed, shapes), strict=True):
            whole.index_copy_(self.at, entries, section)
        return whole

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradients of all samples come back to the owner of an entry."""
        peers, bounds = self.peers, self.peers.bounds(self.batch.samples)
        mine = gradient.index_select(self.at, self.entries[peers.rank])
        handed = [None if rank == peers.rank else gradient.index_select(self.at, entries) for rank, entries in enumerate(self.entries)]
        sizes = [end - start for start, end in pairwise(bounds)]
        joined = torch.cat(_swap(peers, mine, handed, [resized(mine, self.dim, size) for size in sizes]), self.dim)
        return joined.new_zeros(resized(joined, self.at, self.held)).index_copy_(self.at, self.positions, joined)


def _sections(x: Tensor, dim: int, bounds: Sequence[int]) -> list[Tensor]:
    return [x.narrow(dim, start, end - start) for start, end in pairwise(bounds)]


def _swap(peers: Peers, mine: Tensor, handed: Sequence[Tensor | None], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """What the others hand to this rank, and in its own place what it keeps."""
    peers.exchange_bytes += sum(tensor.numel() * tensor.element_size() for tensor in handed if tensor is not None)
    received = peers.exchange(handed, [(0,) if rank == peers.rank else shape for rank, shape in enumerate(shapes)])
    return [mine if rank == peers.rank else tensor for rank, tensor in enumerate(received)]


@dataclass(frozen=True, eq=False)
class Halo:
    """units -> units: (B, S) -> (B, S + H), own values, then those of needed units, then padding with zeros. at: dimension of entries.

    Matrices travel feature-major, (H, B), and are joined so where the own values lie so, as sparse kernels leave them: then the
    entries that are sent, received and added up are rows, and nothing is transposed.
    """

    plan: HaloPlan
    peers: Peers
    at: int = 1

    def forward(self, x: Tensor) -> Tensor:
        """Values of the needed units."""
        return self.joined(x, self.finish(self.begin(self.sent(x), self.plan.receives)))

    def sent(self, x: Tensor) -> list[Tensor]:
        """What every rank needs of the own values."""
        if _feature_major(x):
            return [x.t().index_select(0, entries).t() for entries in self.plan.sends]
        return [x.index_select(self.at, entries) for entries in self.plan.sends]

    def joined(self, x: Tensor, sections: Sequence[Tensor]) -> Tensor:
        """Own values, halo and padding."""
        parts = [x, *sections, x.new_zeros(resized(x, self.at, self.plan.padding))]
        return torch.cat([part.t() for part in parts]).t() if _feature_major(x) else torch.cat(parts, self.at)

    def backward(self, gradient: Tensor) -> Tensor:
        """Gradients of the halo, summed up at the owner."""
        return self.come_back(gradient, self.set_out(gradient))

    def set_out(self, gradient: Tensor) -> Pending:
        """Gradients of the halo, on their way to the owner."""
        _, *halo, _ = torch.split(gradient, [self.plan.own, *self.plan.receives, self.plan.padding], self.at)
        return self.begin(halo, [len(entries) for entries in self.plan.sends])

    def come_back(self, gradient: Tensor, returning: Pending) -> Tensor:
        """The gradient of the own values, with what came back for those sent."""
        own = gradient.narrow(self.at, 0, self.plan.own)
        total = own.t().clone().t() if _feature_major(own) else own.clone(memory_format=torch.contiguous_format)
        return self.added(total, self.finish(returning))

    def added(self, total: Tensor, sections: Sequence[Tensor]) -> Tensor:
        """The gradient of the own values with what came back for those sent."""
        lines, at = (total.t(), 0) if _feature_major(total) else (total, self.at)
        for entries, section in zip(self.plan.sends, sections, strict=True):
            if len(entries):
                lines.index_add_(at, entries, section.t() if lines is not total else section)
        return total

    def begin(self, sections: Sequence[Tensor], receives: Sequence[int]) -> Pending:
        """Sections (B, entries) set out to every rank; `finish` has what comes back, ``receives[r]`` entries from rank r."""
        self.peers.halo_bytes += sum(section.numel() * section.element_size() for section in sections)
        shapes = [resized(sections[0], self.at, count) for count in receives]
        if sections[0].dim() == 2:
            sections, shapes = [section.t() for section in sections], [(entries, batch) for batch, entries in shapes]
        return self.peers.begin(sections, shapes)

    def finish(self, pending: Pending) -> list[Tensor]:
        """What came back, (B, entries) by rank."""
        return [section.t() if section.dim() == 2 else section for section in pending.finish()]


def _feature_major(x: Tensor) -> bool:
    """Whether the samples of an entry lie together, in (B, entries)."""
    return x.dim() == 2 and x.stride(0) == 1 < x.shape[0] and x.shape[1] > 1


class Kept(nn.Module):
    """The entries that a rank really owns, (B, S) -> (B, H): a rank without units of a space holds a dummy, which nobody reads.

    padding: zeros behind them, since a convolution must have something to read.
    """

    entries: Tensor

    def __init__(self, entries: Tensor, padding: int, at: int) -> None:
        super().__init__()
        self.register_buffer("entries", entries, persistent=False)
        self.padding, self.at = padding, at

    def forward(self, x: Tensor) -> Tensor:
        """X (B, S) -> (B, H)."""
        kept = x.index_select(self.at, self.entries)
        return torch.cat([kept, x.new_zeros(resized(x, self.at, self.padding))], self.at) if self.padding else kept


class Bias(nn.Module):
    """Adds what every rank holds, once partial results are totalled. at: dimension of entries."""

    def __init__(self, bias: Tensor, at: int) -> None:
        super().__init__()
        self.bias, self.at = nn.Parameter(bias), at

    def forward(self, x: Tensor) -> Tensor:
        """X (B, C) -> (B, C)."""
        return x + self.bias.view(resized(x.new_empty([1] * x.dim()), self.at, -1))


class Begin(nn.Module):
    """Notes how many samples a batch has. Every rank is given the whole one."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.batch = batch

    def forward(self, x: Tensor) -> Tensor:
        """X (B, ...) as it is."""
        self.batch.samples = len(x)
        return x
