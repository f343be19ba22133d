"""Measuring a machine: as many ranks as devices, each pinned to its own.

kernels, on rank 0 alone -> contention, on all -> messages between pairs -> collectives and halos between computations -> overlap
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from typing import TYPE_CHECKING

from hardware import nvml
from hardware.devices import Device
from hardware.profile import SCHEMA_VERSION, Profile, Progress
from hardware.profile.key import key_of, machine
from hardware.profile.measurements import CollectiveTime, Contention, HaloTime, KernelTime, MessageTime, OperatorTime, Overlap
from hardware.sweep.grid import FULL, QUICK, Grid

if TYPE_CHECKING:
    from hardware.execute.ranks import Rank

__all__ = ["FULL", "QUICK", "Grid", "Measured", "measure", "measure_joined", "measure_rank"]


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
    unfilled: tuple[float, float] = (0.0, 0.0)
    tile_bytes: tuple[int, ...] = (512, 256, 64)
    channel_block: int = 1
    unpadded: float = 1.0


def measure(
    devices: tuple[Device, ...], dtype: str = "float32", *, grid: Grid = QUICK, progress: Progress = lambda message: None
) -> Profile:
    """Measure these devices of this machine at the points of ``grid``: QUICK in seconds, FULL in minutes."""
    from hardware.execute.ranks import run_ranks

    progress(f"measuring {len(devices)} x {devices[0].name}: kernels, links, collectives")
    begun = time.monotonic()
    patience_s = 3600.0 if grid == FULL else 300.0
    first = run_ranks(measure_rank, dtype, grid, ranks=len(devices), kind=devices[0].kind, timeout_s=patience_s)[0]
    progress(f"measured in {time.monotonic() - begun:.1f} s")
    return _profile(key_of(devices, dtype), devices, [""] * len(devices), dtype, first)


def measure_joined(rank: Rank, device: Device, host: str, dtype: str = "float32", *, grid: Grid = QUICK) -> Profile | None:
    """Measure the devices of ranks that something else started, on one host or several: the profile on rank 0, None on the others.

    ``host`` tells this rank's host from others. Kernels are those of rank 0's device. No single machine has such a profile, so what
    comes of it is called simulated, and nothing is timed in its place.
    """
    from torch import distributed

    rank.store.set(f"device/{rank.number}", json.dumps({"host": host, "device": asdict(device)}))
    told = [json.loads(rank.store.get(f"device/{number}")) for number in range(rank.count)]
    devices = tuple(Device(**each["device"]) for each in told)
    found = measure_rank(rank, dtype, grid)
    distributed.barrier()
    if rank.number:
        return None
    return _profile(f"ranks {key_of(devices, dtype)}", devices, [each["host"] for each in told], dtype, found)


def _profile(key: str, devices: tuple[Device, ...], hosts: Sequence[str], dtype: str, first: Measured) -> Profile:
    """The profile of devices, with the hosts that they are on; first: what rank 0 measured."""
    from hardware.sweep.messages import links_of

    return Profile(
        schema_version=SCHEMA_VERSION,
        key=key,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine={**machine(), "python": platform.python_version(), "platform": sys.platform},
        dtype=dtype,
        devices=devices,
        links=links_of(first.messages, _media(devices, hosts)),
        kernels=first.kernels,
        without_input_gradient=first.without_input_gradient,
        collectives=first.collectives,
        step_overhead_s=first.step_overhead_s,
        messages=first.messages,
        contention=first.contention,
        halos=first.halos,
        overlaps=first.overlaps,
        operators=first.operators,
        unfilled=first.unfilled,
        tile_bytes=first.tile_bytes,
        channel_block=first.channel_block,
        unpadded=first.unpadded,
    )


def _media(devices: tuple[Device, ...], hosts: Sequence[str]) -> dict[tuple[int, int], str]:
    """What joins each pair of devices, where it is known."""
    return {pair: _medium(devices, hosts, *pair) for pair in combinations(range(len(devices)), 2)}


def _medium(devices: tuple[Device, ...], hosts: Sequence[str], first: int, second: int) -> str:
    if hosts[first] != hosts[second]:
        return "network"
    if devices[first].kind == "cpu":
        return "loopback"  # processes of one host
    return nvml.medium(devices[first].id, devices[second].id) if hosts[first] == hosts[0] else ""


def measure_rank(rank: Rank, dtype: str, grid: Grid) -> Measured:
    """Kernels on rank 0 while the others wait, then all that takes several ranks."""
    import torch
    from torch import distributed

    from hardware.sweep.clock import keep_memory
    from hardware.sweep.contention import measure_contention, measure_overlap
    from hardware.sweep.kernels import Bench
    from hardware.sweep.messages import measure_collectives, measure_halos, measure_messages, slowest
    from hardware.sweep.operators import measure_operators

    torch.manual_seed(0)
    keep_memory()
    bench = Bench(rank.device, getattr(torch, dtype), grid)
    alone = Measured((), {}, 0.0)
    if rank.number == 0:
        alone = Measured(
            bench.kernels(),
            bench.without_input_gradient(),
            bench.overhead(),
            operators=measure_operators(rank.device, bench.dtype, bench.patience),
            unfilled=bench.unfilled(),
            tile_bytes=bench.tile_bytes,
            channel_block=bench.channel_block(),
            unpadded=bench.unpadded(),
        )
    if rank.count == 1:
        return alone
    distributed.barrier()
    contention, messages = measure_contention(rank, bench), measure_messages(rank, grid)
    link = slowest(messages)
    return replace(
        alone,
        contention=contention,
        messages=messages,
        collectives=measure_collectives(rank, grid, link),
        halos=measure_halos(rank, grid, link),
        overlaps=measure_overlap(rank, link),
    )
