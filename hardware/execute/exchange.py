"""What ranks tell each other in a training step, and how much of it: messages, sums, and the plan of who needs what.

Legend: S entries held by a rank (units times repeat), H entries of its halo, k ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, distributed

from grow.axes import IntArray
from hardware.execute.wires import Wires, connected
from hardware.transitions import DIRECT_BYTES


class Work(Protocol):
    """Messages that can be waited for."""

    def wait(self) -> object:
        """Until they are sent and received."""


class Peers:
    """The ranks of one process group, as one of them sees them. Counts the tensor bytes that this rank hands to others, by purpose.

    halo_bytes: units -> units. exchange_bytes: between batch and units. gather_bytes: shares of the samples that all need.
    sum_bytes: sums, and the moments of norms.
    """

    def __init__(self, rank: int, count: int, group: distributed.ProcessGroup | None = None) -> None:
        self.rank, self.count, self.group = rank, count, group
        self.halo_bytes = 0
        self.exchange_bytes = 0
        self.gather_bytes = 0
        self.sum_bytes = 0

    @property
    def handed_bytes(self) -> int:
        """All bytes that this rank handed in."""
        return self.halo_bytes + self.exchange_bytes + self.gather_bytes + self.sum_bytes

    def forget(self) -> None:
        """Count from zero."""
        self.halo_bytes = self.exchange_bytes = self.gather_bytes = self.sum_bytes = 0

    def settle(self, tensor: Tensor) -> None:
        """Wait until a tensor is computed, with all that other ranks have to send for it. On the CPU it is already.

        On a GPU the process itself waits for others only where it asks for a result: it does so here, where the watch knows it.
        """
        if tensor.is_cuda:
            torch.cuda.current_stream(tensor.device).synchronize()

    def bounds(self, samples: int) -> list[int]:
        """Where the samples of each rank begin in a batch, and where the last ones end, (k + 1,)."""
        return [samples * rank // self.count for rank in range(self.count + 1)]

    @cached_property
    def _gloo(self) -> bool:
        return distributed.get_backend(self.group) == "gloo"

    @cached_property
    def _wires(self) -> Wires | None:
        return connected() if self._gloo else None

    @cached_property
    def _numbers(self) -> list[int]:
        """The numbers of the group's ranks among all."""
        return distributed.get_process_group_ranks(self.group)

    def exchange(self, handed: Sequence[Tensor | None], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Each rank's tensor to that rank (None: nothing); what comes back, by rank, has the given shapes.

        Pairs of messages: with gloo they take two thirds of the time of its all-to-all, and empty ones are never sent. Ranks that one
        parent started on this host have wires, which take a tenth of that.
        """
        return self.begin(handed, shapes).finish()

    def begin(self, handed: Sequence[Tensor | None], shapes: Sequence[tuple[int, ...]]) -> Pending:
        """As `exchange`, without waiting for what comes back."""
        like = next(tensor for tensor in handed if tensor is not None)
        through = torch.device("cpu") if self._gloo else like.device  # gloo's messages take no CUDA tensors
        sent = [None if tensor is None else tensor.to(through).contiguous() for tensor in handed]
        received = [torch.empty(shape, dtype=like.dtype, device=through) for shape in shapes]
        sends = [(tensor, rank) for rank, tensor in enumerate(sent) if tensor is not None and tensor.numel()]
        receives = [(tensor, rank) for rank, tensor in enumerate(received) if tensor.numel()]
        return Pending(self._post(sends, receives), [tensor for tensor, _ in sends], received, like.device)

    def _post(self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]]) -> Sequence[Work]:
        group = self.group
        if self._wires is not None:
            number = self._numbers
            mine = [(tensor, number[rank]) for tensor, rank in sends], [(tensor, number[rank]) for tensor, rank in receives]
            return [self._wires.post(*mine)]
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
        self.sum_bytes += (self.count - 1) * tensor.numel() * tensor.element_size()
        return torch.stack(self._from_all(tensor, [tuple(tensor.shape)] * self.count))

    def join(self, tensor: Tensor, samples: int, dim: int) -> Tensor:
        """Every rank's samples of a batch of so many -> all of them, along ``dim``, on every rank."""
        self.gather_bytes += (self.count - 1) * tensor.numel() * tensor.element_size()
        bounds = self.bounds(samples)
        shapes = [resized(tensor, dim, end - start) for start, end in pairwise(bounds)]
        return torch.cat(self._from_all(tensor, shapes), dim)

    def _from_all(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        others = range(self.count)
        handed = [None if rank == self.rank else tensor for rank in others]
        received = self.exchange(handed, [(0,) if rank == self.rank else shapes[rank] for rank in others])
        return [tensor if rank == self.rank else received[rank] for rank in others]

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, a new tensor, bit for bit the same on all of them."""
        if (self.count - 1) * tensor.numel() * tensor.element_size() <= DIRECT_BYTES:
            return self.gather(tensor).sum(0)
        total = tensor.clone(memory_format=torch.contiguous_format)
        self.all_reduce(total)
        return total

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its sum over the ranks."""
        self.sum_bytes += tensor.numel() * tensor.element_size()
        distributed.all_reduce(tensor, group=self.group)


@dataclass(frozen=True, eq=False)
class Pending:
    """Messages under way. ``kept``: what is being sent, which must live until it is."""

    works: Sequence[Work]
    kept: Sequence[Tensor]
    received: Sequence[Tensor]
    device: torch.device

    def finish(self) -> list[Tensor]:
        """What came back, by rank."""
        for work in self.works:
            work.wait()
        return [tensor.to(self.device) for tensor in self.received]


def resized(tensor: Tensor, dim: int, size: int) -> tuple[int, ...]:
    """The shape of a tensor with another size along one dimension."""
    shape = list(tensor.shape)
    shape[dim] = size
    return tuple(shape)


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
