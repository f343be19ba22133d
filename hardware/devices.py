"""The machines: devices, the links between them, and how they are found. Nothing here imports torch.

Latencies in seconds, bandwidths in bytes per second.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations, pairwise
from math import inf
from pathlib import Path
from typing import Literal

import networkx
import numpy as np
import psutil
from numpy.typing import NDArray

from hardware import nvml
from hardware.cores import available_cores

Kind = Literal["cpu", "cuda"]
ROUTED_BYTES = 2**20
"""The message that routes are chosen for."""


class TooFewDevicesError(ValueError):
    """There are fewer GPUs than asked for, and CPU workers were ruled out."""


@dataclass(frozen=True)
class Device:
    """One GPU, or one CPU worker of one core. ``id`` names the very piece of hardware. numa: memory node that it is next to, if known."""

    name: str
    kind: Kind
    index: int
    memory_bytes: int
    id: str
    numa: int | None = None


@dataclass(frozen=True)
class Link:
    """What one message costs: ``latency_s + bytes / bandwidth_bytes_per_s``. medium: what it is made of, such as NVLink, where known."""

    latency_s: float
    bandwidth_bytes_per_s: float
    medium: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth_bytes_per_s < inf:
            raise ValueError(
                f"bandwidth_bytes_per_s is {self.bandwidth_bytes_per_s}, but must be positive and finite; leave out what is no link"
            )
        if not 0 <= self.latency_s < inf:
            raise ValueError(f"latency_s is {self.latency_s}, but must be at least 0 and finite; measure it anew with `grow profile`")

    def seconds(self, size_bytes: float) -> float:
        """Time of one message.

        >>> Link(1e-5, 1e9).seconds(1e6)
        0.00101
        """
        return self.latency_s + size_bytes / self.bandwidth_bytes_per_s


class DeviceGraph:
    """Devices and the links between them. Immutable; links serve both directions."""

    def __init__(self, devices: tuple[Device, ...], links: Mapping[tuple[int, int], Link]) -> None:
        self.devices = devices
        graph = networkx.Graph()
        for place, device in enumerate(devices):
            graph.add_node(place, device=device)
        for (first, second), link in links.items():
            if not (0 <= first < len(devices) and 0 <= second < len(devices)) or first == second:
                raise ValueError(
                    f"link is ({first}, {second}), but must join two of the devices 0..{len(devices) - 1}; number them in their order"
                )
            graph.add_edge(first, second, link=link, seconds=link.seconds(ROUTED_BYTES))
        if devices and not networkx.is_connected(graph):
            alone = [sorted(group) for group in networkx.connected_components(graph)]
            raise ValueError(f"the device graph falls apart into {alone}, but must be connected; add a link between them")
        self.graph: networkx.Graph = networkx.freeze(graph)
        """Nodes are places in ``devices`` and have a ``device``, edges have a ``link``."""

    def link(self, first: int, second: int) -> Link:
        """The link between two devices, by their places in ``devices``; what a route amounts to where none joins them directly.

        >>> chain = DeviceGraph(tuple(Device("x", "cpu", n, 1, str(n)) for n in range(3)), {(0, 1): Link(1.0, 4.0), (1, 2): Link(2.0, 8.0)})
        >>> chain.link(2, 0)
        Link(latency_s=3.0, bandwidth_bytes_per_s=4.0, medium='')
        """
        passed = [self.links[pair] for pair in self.route(first, second)]
        if len(passed) == 1:
            return passed[0]
        media = "+".join(dict.fromkeys(link.medium for link in passed if link.medium))
        return Link(sum(link.latency_s for link in passed), min(link.bandwidth_bytes_per_s for link in passed), media)

    def route(self, first: int, second: int) -> list[tuple[int, int]]:
        """The links that a message takes, as pairs of neighbours (smaller place first): the path on which 1 MiB is fastest."""
        for place in (first, second):
            if place not in self.graph:
                raise ValueError(f"device is {place}, but must be one of 0..{len(self.devices) - 1}; profile as many as are used")
        if first == second:
            raise ValueError(f"route is from {first} to itself, but must join two devices; a device needs no link to itself")
        path = networkx.shortest_path(self.graph, first, second, weight="seconds")
        return [(min(pair), max(pair)) for pair in pairwise(path)]

    def costs(self, count: int) -> NDArray[np.float64]:
        """What a byte from one of the first ``count`` devices to another costs, (count, count): its seconds on the route between them.

        Relative to the cheapest of them: even links all cost 1.
        """
        if not 1 <= count <= len(self.devices):
            raise ValueError(f"parts is {count}, but must be 1 to {len(self.devices)}, the devices of the graph; divide for fewer of them")
        found = np.zeros((count, count))
        for first, second in combinations(range(count), 2):
            found[first, second] = found[second, first] = 1 / self.link(first, second).bandwidth_bytes_per_s
        return found / found[~np.eye(count, dtype=bool)].min() if count > 1 else found

    @cached_property
    def links(self) -> dict[tuple[int, int], Link]:
        """All links, by pairs of devices."""
        return {(min(a, b), max(a, b)): link for a, b, link in self.graph.edges(data="link")}


@dataclass(frozen=True)
class Discovery:
    """The devices found. ``note`` is for the user (on stderr) where CPU workers stand in or share cores."""

    devices: tuple[Device, ...]
    note: str | None

    @property
    def kind(self) -> Kind:
        """What the devices are: all of them are of one kind."""
        return self.devices[0].kind


def discover(kind: Literal["auto", "cpu", "cuda"] = "auto", count: int = 1) -> Discovery:
    """Find ``count`` devices.

    ``auto`` takes GPUs where there are enough, else as many CPU workers of one core. Raises TooFewDevicesError for ``cuda``.
    """
    if kind not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {kind!r}, but must be one of auto, cpu, cuda")
    if count < 1:
        raise ValueError(f"gpus is {count}, but must be at least 1; ask for as many with --gpus as the network may use")
    if kind == "cpu":
        return Discovery(_workers(count), _crowded(count))
    found = gpus()
    if len(found) >= count:
        return Discovery(found[:count], None)
    if kind == "cuda":
        raise TooFewDevicesError(
            f"the number of GPUs is {len(found)}, but must be at least {count}; ask for fewer, or use --device auto or cpu"
        )
    workers = f"{count} CPU worker{'s' if count > 1 else ''} of one core each"
    note = f"{len(found)} of {count} GPUs found: {workers} stand in, and every figure is of them"
    crowded = _crowded(count)
    return Discovery(_workers(count), note if crowded is None else f"{note}; {crowded}")


def cores() -> int:
    """Cores that this process may use."""
    return len(available_cores())


@cache
def gpus() -> tuple[Device, ...]:
    """NVIDIA GPUs that CUDA programs of this process see, in their order."""
    found = nvml.gpus()
    seen = visible([gpu.id for gpu in found], os.environ.get("CUDA_VISIBLE_DEVICES"))
    return tuple(Device(found[n].name, "cuda", index, found[n].memory_bytes, found[n].id, found[n].numa) for index, n in enumerate(seen))


def visible(identities: list[str], setting: str | None) -> list[int]:
    """Places of the GPUs that CUDA_VISIBLE_DEVICES leaves: numbers or beginnings of ids, up to the first that fits none.

    >>> visible(["GPU-a1", "GPU-b2"], "1,GPU-a"), visible(["GPU-a1", "GPU-b2"], "0,7,1"), visible(["GPU-a1"], None)
    ([1, 0], [0], [0])
    """
    if setting is None:
        return list(range(len(identities)))
    chosen: list[int] = []
    for word in (part.strip() for part in setting.split(",")):
        fits = [int(word)] if word.isdigit() else [n for n, identity in enumerate(identities) if word and identity.startswith(word)]
        if len(fits) != 1 or fits[0] >= len(identities):
            break
        chosen += fits
    return chosen


@cache
def cpu_name() -> str:
    """Name of the processor."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _workers(count: int) -> tuple[Device, ...]:
    memory, allowed = psutil.virtual_memory().total // count, available_cores()
    return tuple(
        Device(cpu_name(), "cpu", index, memory, f"{platform.node()}/worker{index}", _numa_of(allowed[index % len(allowed)]))
        for index in range(count)
    )


def _numa_of(core: int) -> int | None:
    """The memory node of a core, as Linux tells it."""
    return next((int(node.name[4:]) for node in Path(f"/sys/devices/system/cpu/cpu{core}").glob("node[0-9]*")), None)


def _crowded(count: int) -> str | None:
    if count <= cores():
        return None
    return f"{count} workers share {cores()} core{'s' if cores() > 1 else ''}, so more workers cannot be faster"
