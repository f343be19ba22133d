"""What ranks of the tests do. A rank imports the module of its target: here that is nothing but what the target itself needs."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hardware.execute.ranks import Rank, run_ranks

if TYPE_CHECKING:
    from torch import Tensor

    from hardware.execute.exchange import Peers


@dataclass(frozen=True)
class Crossed:
    """Values behind a halo exchange and whether they kept their order in memory, gradients, and bytes handed in so far."""

    values: Tensor
    kept: bool
    gradients: Tensor
    handed: int


@dataclass(frozen=True)
class Told:
    """What a rank tells of itself, and of what it said to the others: their sum, all of it, and the bytes that it handed in."""

    number: int
    threads: int
    cores: list[int]
    backend: str
    wired: bool
    total: float
    gathered: list[list[int]]
    handed: int


def describe(rank: Rank, tensor: Tensor) -> tuple[Told, list[Crossed]]:
    """What a rank is, and what crosses between the first two."""
    import torch
    from torch import distributed

    from hardware.execute.exchange import Peers
    from hardware.execute.wires import connected

    total, peers = tensor * (rank.number + 1), Peers(rank.number, rank.count)
    distributed.all_reduce(total)
    gathered = peers.gather(torch.arange(3) + 10 * rank.number).tolist()
    print("not on the parent's stdout")
    cores, backend = sorted(os.sched_getaffinity(0)), distributed.get_backend()
    told = Told(rank.number, torch.get_num_threads(), cores, backend, connected() is not None, total.item(), gathered, peers.sum_bytes)
    return told, crossed(peers)


def crossed(peers: Peers) -> list[Crossed]:
    """A halo exchange row-major and feature-major, of which the third rank has and needs nothing."""
    import numpy as np
    import torch

    from hardware.execute.exchange import halo_plans
    from hardware.execute.moves import Halo

    needed = [np.array([0, 1, 2, 4]), np.array([0, 2, 3, 4]), np.arange(0)]
    plans, _ = halo_plans(np.array([0, 0, 0, 1, 1]), needed, multiple=3)
    halo, found = Halo(plans[peers.rank], peers), []
    for flip in (False, True):
        x = 10.0 * peers.rank + torch.arange(4 * halo.plan.own).view(4, -1) / 8
        x = x.t().contiguous().t() if flip else x
        joined = halo.forward(x)
        weights = torch.arange(joined.numel(), dtype=x.dtype).view(joined.shape)
        kept = (joined.t() if flip else joined).is_contiguous()
        found.append(Crossed(joined, kept, halo.backward(weights.t().contiguous().t() if flip else weights), peers.halo_bytes))
    return found


def misbehave(rank: Rank, how: str) -> None:
    """Rank 1 raises, dies or hangs; the others wait for it."""
    if rank.number == 1:
        if how == "raise":
            raise ValueError("density is 1.3")
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    from torch import distributed

    distributed.barrier()


if __name__ == "__main__":
    from tests.hardware import in_ranks

    run_ranks(in_ranks.misbehave, sys.argv[1], ranks=2)
