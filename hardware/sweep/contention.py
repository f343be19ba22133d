"""What devices cost each other: layer steps while all compute, and computation while the links are busy."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import distributed

from grow.kernels import KERNELS
from hardware.profile import table_name, touched_bytes
from hardware.profile.measurements import Contention, Overlap
from hardware.sweep.clock import Patience, own_work, short_product

if TYPE_CHECKING:
    from hardware.devices import Link
    from hardware.execute.ranks import Rank
    from hardware.sweep.kernels import Bench, Step

SHAPES = ((64, 64, 64), (256, 256, 256), (1024, 1024, 256))
"""Rows, columns and batch of linear steps that fit into a core's own cache, the shared one, and none."""
CONV_SHAPES = ((16, 100, 1024), (64, 800, 4096))
DENSITY = 0.1
OVERLAPPED_BYTES = 2**22
ROUNDS = 6
TURNS = 3
"""Of one alone and all together, of which the middle one counts: the lowest one would be too low."""


def measure_contention(rank: Rank, bench: Bench) -> tuple[Contention, ...]:
    """Every kernel alone on rank 0 and on all ranks at once, at three sizes: how much longer it takes there. The same on every rank."""
    found = []
    for convolution, shapes in ((False, SHAPES), (True, CONV_SHAPES)):
        make = bench.conv_step if convolution else bench.linear_step
        for name in bench.names:
            for rows, columns, batch in shapes:
                step = make(name, rows, columns, batch, 1.0 if KERNELS[name].storage == "dense" else DENSITY)
                ratio = _together_over_alone(rank, bench, step)
                size = touched_bytes(rows, columns, batch, bench.dtype.itemsize)
                found.append(Contention(table_name(name, convolution=convolution), rank.count, size, ratio))
    return tuple(found)


def _together_over_alone(rank: Rank, bench: Bench, step: Step) -> float:
    """Alternately alone and together, so that a change of the clock rate hits both.

    What ranks that share a core wait for each other is no work of theirs, and comes on top.
    """
    patience = Patience(200, bench.grid.budget_s / TURNS, fewest=1, warm_up=1)
    ratios = list[float]()
    for _ in range(TURNS):
        alone = own_work(step, bench.device, patience).seconds if rank.number == 0 else 0.0
        distributed.barrier()
        together = own_work(step, bench.device, patience).seconds
        distributed.barrier()
        seconds = torch.tensor([alone, together / rank.count], dtype=torch.float64, device=rank.device)
        distributed.all_reduce(seconds)
        ratios.append(float(seconds[1] / seconds[0]))
    return median(ratios) * (rank.crowd if bench.device.type == "cpu" else 1)


def measure_overlap(rank: Rank, link: Link) -> tuple[Overlap, ...]:
    """A computation half as long again as a sum of 4 MiB, the sum, and both at once, in turns. The same on every rank.

    Over a slow link the sum is of fewer bytes, so that it takes no more than a quarter of a second.
    """
    size = min(OVERLAPPED_BYTES, max(2**12, int(link.bandwidth_bytes_per_s / 4) // 4 * 4))
    tensor, compute = torch.zeros(size // 4, device=rank.device), short_product(rank.device)

    def run(communicate: bool, steps: int) -> float:
        _settle(rank)
        begun = time.perf_counter()
        work = distributed.all_reduce(tensor, async_op=True) if communicate else None
        for _ in range(steps):
            compute()
        if work is not None:
            work.wait()
        _settle(rank)
        return time.perf_counter() - begun

    run(True, 1)
    steps = _agreed(rank, max(1, round(1.5 * run(True, 0) / max(run(False, 20) / 20, 1e-9))))
    turns = [(run(False, steps), run(True, 0), run(True, steps)) for _ in range(ROUNDS)]
    medians = torch.tensor([median(times) for times in zip(*turns, strict=True)], dtype=torch.float64, device=rank.device)
    distributed.broadcast(medians, 0)
    return (Overlap(rank.count, size, *map(float, medians)),)


def _settle(rank: Rank) -> None:
    if rank.device.type == "cuda":
        torch.cuda.synchronize(rank.device)
    distributed.barrier()


def _agreed(rank: Rank, number: int) -> int:
    shared = torch.tensor(number, device=rank.device)
    distributed.broadcast(shared, 0)
    return int(shared)
