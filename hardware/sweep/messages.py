"""What ranks send each other: messages, collectives and halos over all sizes. Every rank runs the same lines at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations, product
from math import inf
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import distributed

from hardware.devices import ROUTED_BYTES, Link
from hardware.execute.exchange import Peers, halo_plans
from hardware.execute.moves import Halo, Moved
from hardware.profile.measurements import Collective, CollectiveTime, HaloTime, MeasuredLink, MessageTime
from hardware.sweep.clock import Timing, in_company, short_product
from hardware.transitions import DIRECT_BYTES

if TYPE_CHECKING:
    from hardware.execute.ranks import Rank
    from hardware.sweep.grid import Grid
    from hardware.tables import FloatArray

MOST_BYTES = 2**28
"""No collective of the sweep hands in more than this on all ranks together."""
MOST_S = 2.0
"""What would take longer over the slowest link is not sent, and what is sent again and again takes about this in all."""
HALO_BATCH = 256
HALO_UNITS = (16, 128, 1024)
HALO_SHARES = (1 / 16, 1.0)


def measure_messages(rank: Rank, grid: Grid) -> tuple[MessageTime, ...]:
    """Ping-pong between each pair of ranks over all sizes, while the other ranks wait. The same on every rank.

    A slow link is spared the sizes that would take too long on it.
    """
    found = []
    for first, second in combinations(range(rank.count), 2):
        bytes_per_s = inf
        for size in grid.sizes:
            if size / bytes_per_s > MOST_S:
                break
            timing = torch.zeros(2, dtype=torch.float64, device=rank.device)
            if rank.number in (first, second):
                repeats = _repeats(grid, size, rank.count, 2 * size / bytes_per_s)
                there_and_back = _ping_pong(rank, second if rank.number == first else first, size, repeats)
                timing[:] = torch.tensor([there_and_back.seconds / 2, there_and_back.spread])
            distributed.broadcast(timing, first)
            row = MessageTime(first, second, size, *map(float, timing.tolist()))
            bytes_per_s = size / row.seconds
            found.append(row)
    return tuple(found)


def slowest(messages: Sequence[MessageTime]) -> Link:
    """The link over which a message takes longest."""
    links = (Link(link.latency_s, link.bandwidth_bytes_per_s) for link in links_of(messages, {}))
    return max(links, key=lambda link: link.seconds(ROUTED_BYTES))


def _ping_pong(rank: Rank, other: int, size: int, repeats: int) -> Timing:
    peers, tensor = Peers(rank.number, rank.count), torch.zeros(size, dtype=torch.uint8, device=rank.device)
    empty, nothing = [tensor[:0]] * rank.count, [(0,)] * rank.count  # what is empty is not sent
    handed = [tensor if number == other else tensor[:0] for number in range(rank.count)]
    taken = [(size,) if number == other else (0,) for number in range(rank.count)]

    def there_and_back() -> None:
        for sends in (rank.number < other, rank.number > other):
            peers.exchange(*((handed, nothing) if sends else (empty, taken)))

    return in_company(there_and_back, rank.device, repeats)


def links_of(messages: Sequence[MessageTime], media: dict[tuple[int, int], str]) -> tuple[MeasuredLink, ...]:
    """A link for every pair of devices that sent messages."""
    found = []
    for first, second in dict.fromkeys((row.first, row.second) for row in messages):
        rows = [row for row in messages if (row.first, row.second) == (first, second)]
        link = fitted(np.array([row.bytes for row in rows], float), np.array([row.seconds for row in rows]))
        found.append(MeasuredLink(first, second, link.latency_s, link.bandwidth_bytes_per_s, media.get((first, second), "")))
    return tuple(found)


def fitted(sizes: FloatArray, seconds: FloatArray) -> Link:
    """Latency of small messages; bandwidth of what larger ones take beyond it, the largest counting most."""
    latency = float(seconds[:3].min())
    larger = sizes >= min(2**15, sizes[-1])
    extra = float((seconds[larger] - latency).sum())
    return Link(latency, float(sizes[larger].sum() / extra if extra > 0 else sizes[-1] / seconds[-1]))


def measure_collectives(rank: Rank, grid: Grid, link: Link) -> tuple[CollectiveTime, ...]:
    """Exchanges, sums and gathers of all sizes, on the first 2, 4, 8, ... and on all ranks; each rank comes from a computation."""
    found: list[CollectiveTime] = []
    for peers in _groups(rank):
        sizes = [size for size in collective_sizes(grid.sizes, peers.count) if link.seconds(size) <= MOST_S]
        found += [row for size in sizes for row in _collectives(rank, peers, size, grid, link)]
        distributed.barrier()
    return tuple(found)


def collective_sizes(sizes: Sequence[int], ranks: int) -> list[int]:
    """These sizes in bytes, and the smallest one that is summed in a ring: it takes up to twice as long as the next smaller one.

    >>> collective_sizes((8, 2**20), 2)
    [8, 262148, 1048576]
    """
    ring = (DIRECT_BYTES // (ranks - 1) // 4 + 1) * 4
    return sorted({*sizes, *([ring] if min(sizes) < ring < max(sizes) else [])})


def measure_halos(rank: Rank, grid: Grid, link: Link) -> tuple[HaloTime, ...]:
    """Whole halo exchanges, there and back, of spaces of several widths of which little or all is needed elsewhere."""
    found: list[HaloTime] = []
    for peers in _groups(rank):
        for units in HALO_UNITS:
            for share, by_unit in product(HALO_SHARES, (False, True)):
                found.append(_halo(rank, peers, units, max(1, round(share * units)), by_unit, grid, link))
        distributed.barrier()
    return tuple(found)


def _groups(rank: Rank) -> Iterator[Peers]:
    """The first 2, 4, 8, ... and all ranks, as those who belong to them see them; the others wait at the next barrier."""
    from hardware.execute.ranks import settle_gloo

    counts = sorted({2**power for power in range(1, rank.count.bit_length()) if 2**power < rank.count} | {rank.count})
    for count in counts:
        group = distributed.new_group(list(range(count)))
        settle_gloo()
        if rank.number < count:
            yield Peers(rank.number, count, group)
        else:
            distributed.barrier()


def _collectives(rank: Rank, peers: Peers, size: int, grid: Grid, link: Link) -> Iterator[CollectiveTime]:
    others = [number for number in range(peers.count) if number != peers.rank]
    if size * peers.count > MOST_BYTES:
        return
    share = torch.zeros(max(1, size // 4 // len(others)), device=rank.device)
    handed = [share if number in others else None for number in range(peers.count)]
    shapes = [tuple(share.shape) if number in others else (0,) for number in range(peers.count)]
    whole = torch.zeros(max(1, size // 4), device=rank.device)
    direct = (peers.count - 1) * size <= DIRECT_BYTES
    calls: dict[Collective, Callable[[], object]] = {
        "exchange": partial(peers.exchange, handed, shapes),
        "sum": partial(peers.sum if direct else peers.all_reduce, whole),  # large gradients become their sum: none is copied
        "gather": partial(peers.gather, whole),
    }
    compute = short_product(rank.device)
    for name, call in calls.items():
        if name != "sum" and (size > grid.exchanged_bytes or size not in grid.sizes):
            continue
        timing = in_company(call, rank.device, _repeats(grid, size, rank.count, link.seconds(size)), compute)
        yield CollectiveTime(name, peers.count, size, *timing)


def _halo(rank: Rank, peers: Peers, units: int, needed: int, by_unit: bool, grid: Grid, link: Link) -> HaloTime:
    """``units`` of every rank, of which the next rank needs some; their values as sparse kernels leave them (``by_unit``) or dense ones."""
    owner = np.repeat(np.arange(peers.count), units)
    needs = []
    for number in range(peers.count):
        before = (number - 1) % peers.count * units
        needs.append(np.sort(np.concatenate([np.arange(number * units, (number + 1) * units), np.arange(before, before + needed)])))
    plans, _ = halo_plans(owner, needs)
    exchange = Moved(Halo(plans[peers.rank], peers)).to(rank.device)
    x, upstream = (
        torch.ones(width, HALO_BATCH, device=rank.device).t() if by_unit else torch.ones(HALO_BATCH, width, device=rank.device)
        for width in (units, units + needed)
    )
    x.requires_grad_(True)

    def there_and_back() -> None:
        x.grad = None
        exchange(x).backward(upstream)

    values = x.element_size() * HALO_BATCH
    repeats = min(max(5, grid.repeats // 2), _affordable(2 * link.seconds(values * needed)))
    timing = in_company(there_and_back, rank.device, repeats, short_product(rank.device))
    return HaloTime(peers.count, values * units, values * needed, *timing, by_unit)


def _repeats(grid: Grid, size: int, ranks: int, expected_s: float) -> int:
    """How often something of this size, which takes about so long, is repeated."""
    wanted = max(3, (grid.repeats if size < 2**20 else grid.repeats // 6 if size < 2**24 else 3) // max(1, ranks // 2))
    return min(wanted, _affordable(expected_s))


def _affordable(expected_s: float) -> int:
    return max(3, int(min(1e6, MOST_S / max(expected_s, 1e-9))))
