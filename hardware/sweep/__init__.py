"""Measuring a machine: as many ranks as devices, each pinned to its own.

kernels, on rank 0 alone -> contention, on all -> messages between pairs -> collectives and halos between computations -> overlap
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from typing import TYPE_CHECKING

from hardware import nvml
from hardware.devices import Device
from hardware.profile import (
    SCHEMA_VERSION,
    CollectiveTime,
    Contention,
    HaloTime,
    KernelTime,
    MessageTime,
    OperatorTime,
    Overlap,
    Profile,
    Progress,
    key_of,
    machine,
)
from hardware.sweep.grid import FULL, QUICK, Grid

if TYPE_CHECKING:
    from hardware.execute.ranks import Rank

__all__ = ["FULL", "QUICK", "Grid", "Measured", "measure", "measure_rank"]


@dataclass(frozen=True)
class Measured:
    """What one rank measured; kernels on rank 0 only."""

    kernels: tuple[KernelTime, ...]
    without_input_gradient: Mapping[str, float]
    step_overhead_s: float
    contention: tuple[Contention, ...] = ()
    messages: tuple[MessageTime, ...] = ()
    collectives: tuple[CollectiveTime, ...] = ()
    halos: tuple[HaloTime, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    operators: tuple[OperatorTime, ...] = ()
    channel_block: int = 1
    unpadded: float = 1.0


def measure(
    devices: tuple[Device, ...], dtype: str = "float32", *, full: bool = False, progress: Progress = lambda message: None
) -> Profile:
    """Measure these devices of this machine: in seconds, or in minutes at many more points."""
    from hardware.execute.ranks import run_ranks
    from hardware.sweep.messages import links_of

    progress(f"measuring {len(devices)} x {devices[0].name}: kernels, links, collectives")
    begun = time.monotonic()
    grid, patience_s = (FULL, 3600.0) if full else (QUICK, 300.0)
    first = run_ranks(measure_rank, dtype, grid, ranks=len(devices), kind=devices[0].kind, timeout_s=patience_s)[0]
    progress(f"measured in {time.monotonic() - begun:.1f} s")
    return Profile(
        schema_version=SCHEMA_VERSION,
        key=key_of(devices, dtype),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine={**machine(), "python": platform.python_version(), "platform": sys.platform},
        dtype=dtype,
        devices=devices,
        links=links_of(first.messages, _media(devices)),
        kernels=first.kernels,
        without_input_gradient=first.without_input_gradient,
        collectives=first.collectives,
        step_overhead_s=first.step_overhead_s,
        messages=first.messages,
        contention=first.contention,
        halos=first.halos,
        overlaps=first.overlaps,
        operators=first.operators,
        channel_block=first.channel_block,
        unpadded=first.unpadded,
    )


def _media(devices: tuple[Device, ...]) -> dict[tuple[int, int], str]:
    """What joins each pair of devices, where it is known."""
    pairs = list(combinations(range(len(devices)), 2))
    if devices[0].kind == "cpu":
        return dict.fromkeys(pairs, "loopback")  # processes of one host, through gloo
    return {(first, second): nvml.medium(devices[first].id, devices[second].id) for first, second in pairs}


def measure_rank(rank: Rank, dtype: str, grid: Grid) -> Measured:
    """Kernels on rank 0 while the others wait, then all that takes several ranks."""
    import torch
    from torch import distributed

    from hardware.sweep.contention import measure_contention, measure_overlap
    from hardware.sweep.kernels import Bench
    from hardware.sweep.messages import measure_collectives, measure_halos, measure_messages
    from hardware.sweep.operators import measure_operators

    torch.manual_seed(0)
    bench = Bench(rank.device, getattr(torch, dtype), grid)
    alone = Measured((), {}, 0.0)
    if rank.number == 0:
        alone = Measured(
            bench.kernels(),
            bench.without_input_gradient(),
            bench.overhead(),
            operators=measure_operators(rank.device, bench.dtype, bench.patience),
            channel_block=bench.channel_block(),
            unpadded=bench.unpadded(),
        )
    if rank.count == 1:
        return alone
    distributed.barrier()
    return replace(
        alone,
        contention=measure_contention(rank, bench),
        messages=measure_messages(rank, grid),
        collectives=measure_collectives(rank, grid),
        halos=measure_halos(rank, grid),
        overlaps=measure_overlap(rank),
    )
