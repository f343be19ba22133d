"""What ranks tell each other in a training step: values of halo units, sums of partial results, and gradients.

Legend: B batch, S entries held by this rank (units times repeat), H entries of its halo, k ranks. Entries are dimension 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from grow.axes import IntArray
from hardware.transitions import DIRECT_BYTES


class Peers:
    """The ranks of one process group, as one of them sees them. Counts the tensor bytes that this rank hands in, by purpose."""

    def __init__(self, rank: int, count: int, group: distributed.ProcessGroup | None = None) -> None:
        self.rank, self.count, self.group = rank, count, group
        self.halo_bytes = 0
        self.sum_bytes = 0

    @cached_property
    def _gloo(self) -> bool:
        return distributed.get_backend(self.group) == "gloo"

    def exchange(self, handed: Sequence[Tensor | None], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Each rank's tensor to that rank (None: nothing); what comes back, by rank, has the given shapes.

        Pairs of messages: with gloo they take two thirds of the time of its all-to-all, and empty ones are never sent.
        """
        staged = self._gloo and torch.cuda.is_available()  # gloo's messages take no CUDA tensors
        sent = [None if tensor is None else tensor.cpu().contiguous() if staged else tensor.contiguous() for tensor in handed]
        like = next(tensor for tensor in handed if tensor is not None)
        received = [torch.empty(shape, dtype=like.dtype, device="cpu" if staged else like.device) for shape in shapes]
        sends = [(tensor, rank) for rank, tensor in enumerate(sent) if tensor is not None and tensor.numel()]
        receives = [(tensor, rank) for rank, tensor in enumerate(received) if tensor.numel()]
        for work in self._post(sends, receives):
            work.wait()
        return [tensor.to(like.device) for tensor in received] if staged else received

    def _post(self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]]) -> list[distributed.Work]:
        group = self.group
        if self._gloo:
            works = [distributed.isend(tensor, group=group, group_dst=rank) for tensor, rank in sends]
            works += [distributed.irecv(tensor, group=group, group_src=rank) for tensor, rank in receives]
            return [work for work in works if work is not None]
        # NCCL runs messages one after the other unless they are posted as one batch
        operations = [distributed.P2POp(distributed.isend, tensor, group=group, group_peer=rank) for tensor, rank in sends]
        operations += [distributed.P2POp(distributed.irecv, tensor, group=group, group_peer=rank) for tensor, rank in receives]
        return distributed.batch_isend_irecv(operations) if operations else []

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, of one shape, stacked in their order (k, ...), in one message to each other rank."""
        others = range(self.count)
        shapes = [(0,) if rank == self.rank else tuple(tensor.shape) for rank in others]
        self.sum_bytes += (self.count - 1) * tensor.numel() * tensor.element_size()
        received = self.exchange([None if rank == self.rank else tensor for rank in others], shapes)
        return torch.stack([tensor if rank == self.rank else received[rank] for rank in others])

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, a new tensor, bit for bit the same on all of them."""
        if (self.count - 1) * tensor.numel() * tensor.element_size() <= DIRECT_BYTES:
            return self.gather(tensor).sum(0)
        total = tensor.clone(memory_format=torch.contiguous_format)
        self.add_up(total)
        return total

    def add_up(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its sum over the ranks."""
        self.sum_bytes += tensor.numel() * tensor.element_size()
        distributed.all_reduce(tensor, group=self.group)


@dataclass(frozen=True, eq=False)
class HaloPlan:
    """Who needs what at one place of the network, as one rank sees it; made once per edit.

    ``sends[r]``: positions among the own entries that rank r needs. ``receives[r]``: how many entries rank r sends here.
    ``padding``: zeros that follow them.
    """

    own: int
    sends: tuple[Tensor, ...]
    receives: tuple[int, ...]
    padding: int = 0


def halo_plans(owner: IntArray, needs: Sequence[IntArray], multiple: int = 1) -> tuple[tuple[HaloPlan, ...], tuple[IntArray, ...]]:
    """Plans of all ranks, and for each rank the entries that it holds afterwards: its own, then the halo by owner, then padding, -1.

    owner: rank of every entry (L,), -1 for what all ranks hold. needs: for every rank, the sorted entries that it reads.
    Whoever has a halo is padded to a multiple of ``multiple`` entries.

    >>> plans, held = halo_plans(np.array([0, 0, 1, 1]), [np.array([0, 1, 3]), np.array([2, 3])])
    >>> [entries.tolist() for entries in held]
    [[0, 1, 3], [2, 3]]
    >>> plans[0].receives, plans[1].sends[0].tolist()
    ((0, 1), [1])
    """
    ranks = range(len(needs))
    own = [np.flatnonzero((owner == rank) | (owner < 0)) for rank in ranks]
    needed = [[read[owner[read] == source] if source != rank else read[:0] for source in ranks] for rank, read in enumerate(needs)]
    plans, held = [], []
    for rank in ranks:
        receives = tuple(len(entries) for entries in needed[rank])
        padding = -(len(own[rank]) + sum(receives)) % multiple if sum(receives) else 0
        sends = tuple(torch.from_numpy(np.searchsorted(own[rank], needed[target][rank])) for target in ranks)
        plans.append(HaloPlan(len(own[rank]), sends, receives, padding))
        held.append(np.concatenate([own[rank], *needed[rank], np.full(padding, -1)]))
    return tuple(plans), tuple(held)


class _Halo(torch.autograd.Function):
    """Forward: values of the needed units. Backward, the transpose: their gradients, summed up at the owner. H counts the padding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: HaloPlan, peers: Peers) -> Tensor:
        """X (B, S, ...) -> (B, S + H, ...)."""
        ctx.plan, ctx.peers = plan, peers
        sections = _exchange(peers, [x.index_select(1, entries) for entries in plan.sends], plan.receives)
        return torch.cat([x, *sections, x.new_zeros(x.shape[0], plan.padding, *x.shape[2:])], 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Gradient (B, S + H, ...) -> (B, S, ...)."""
        plan: HaloPlan = ctx.plan
        own, *halo, _ = torch.split(gradients[0], [plan.own, *plan.receives, plan.padding], 1)
        sections = _exchange(ctx.peers, halo, [len(entries) for entries in plan.sends])
        total = own.clone(memory_format=torch.contiguous_format)
        for entries, section in zip(plan.sends, sections, strict=True):
            if len(entries):
                total.index_add_(1, entries, section)
        return total, None, None


def _exchange(peers: Peers, sections: Sequence[Tensor], receives: Sequence[int]) -> list[Tensor]:
    """Sections (B, entries, ...) to every rank; what comes back, ``receives[r]`` entries from rank r."""
    peers.halo_bytes += sum(section.numel() * section.element_size() for section in sections)
    batch, _, *rest = sections[0].shape
    return peers.exchange(sections, [(batch, count, *rest) for count in receives])


class _Total(torch.autograd.Function):
    """Forward: the sum of the ranks' partial results. Backward: the identity, since every rank holds the whole gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        """Partial (B, ...) -> total (B, ...)."""
        return peers.sum(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient of the total is the gradient of each part."""
        return gradients[0], None


class HaloExchange(nn.Module):
    """Own values (B, S, ...) -> own and halo values (B, S + H, ...)."""

    def __init__(self, plan: HaloPlan, peers: Peers) -> None:
        super().__init__()
        self.plan, self.peers = plan, peers

    def forward(self, x: Tensor) -> Tensor:
        """X (B, S, ...) -> (B, S + H, ...)."""
        out: Tensor = _Halo.apply(x, self.plan, self.peers)  # type: ignore[no-untyped-call]
        return out


class Total(nn.Module):
    """Sums the partial results of all ranks, then adds the bias, which every rank holds."""

    def __init__(self, bias: Tensor | None, peers: Peers) -> None:
        super().__init__()
        self.peers = peers
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Partial (B, C, ...) -> total (B, C, ...)."""
        total: Tensor = _Total.apply(x, self.peers)  # type: ignore[no-untyped-call]
        return total if self.bias is None else total + self.bias.view(-1, *[1] * (x.dim() - 2))


class GradientSum:
    """Sums gradients over the ranks while the backward pass still runs: large ones as they are, small ones together at its end."""

    def __init__(self, parameters: Sequence[nn.Parameter], peers: Peers) -> None:
        self.peers = peers
        self._small = [parameter for parameter in parameters if parameter.numel() * parameter.element_size() < DIRECT_BYTES]
        self._works: list[distributed.Work] = []
        for parameter in parameters:
            if parameter.requires_grad and parameter.numel() * parameter.element_size() >= DIRECT_BYTES:
                parameter.register_post_accumulate_grad_hook(self._begin)  # type: ignore[no-untyped-call]

    def _begin(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        parameter.grad = gradient = gradient.contiguous()
        self.peers.sum_bytes += gradient.numel() * gradient.element_size()
        work = distributed.all_reduce(gradient, group=self.peers.group, async_op=True)
        assert work is not None
        self._works.append(work)

    def finish(self) -> None:
        """Wait for the large ones, sum the small ones."""
        small = [parameter.grad for parameter in self._small if parameter.grad is not None]
        if small:
            total = self.peers.sum(torch.cat([gradient.reshape(-1) for gradient in small]))
            for gradient, summed in zip(small, torch.split(total, [gradient.numel() for gradient in small]), strict=True):
                gradient.copy_(summed.view_as(gradient))
        for work in self._works:
            work.wait()
        self._works.clear()
